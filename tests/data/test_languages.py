"""Codes of languages: which of them are one language."""

from m3p.data.languages import is_among


def test_a_language_is_itself_whatever_its_region_script_or_old_code() -> None:
    for language, others in (("zh", ["zh-CN"]), ("zh-Hant", ["cmn"]), ("he", ["en", "iw"]), ("PT", ["pt-BR"])):
        assert is_among(language, others), (language, others)
    for language, others in (("yue", ["zh"]), ("de", ["nds", "en"]), ("de", list[str]())):
        assert not is_among(language, others), (language, others)
