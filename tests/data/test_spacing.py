import pytest

from m3p.data.spacing import base_language, writes_spaces

UNSPACED = (
    "zh zh-Hant zh-TW zh_TW ZH zho chi cmn cmn-Hans yue yue-HK wuu lzh nan hak gan ja ja-JP JA_jp jpn th tha th-TH my mya "
    "bur km khm lo lao bo bod tib dz dzo ja-Hrkt jv-Java"
)
SPACED = (
    "en de-DE en_US ko kor vi vie id tr ar zh-Latn zh-Latn-pinyin nan-Latn ja-Latn ko-Kore sr-Cyrl de-1996 jv ban mn su"
)


@pytest.mark.parametrize("tag", UNSPACED.split())
def test_languages_without_spaces_are_known_by_every_tag(tag: str) -> None:
    assert not writes_spaces(tag)


@pytest.mark.parametrize("tag", SPACED.split())
def test_others_and_latin_transcriptions_have_spaces(tag: str) -> None:
    assert writes_spaces(tag)


def test_the_base_of_a_tag_is_its_shortest_code() -> None:
    assert [base_language(tag) for tag in ("zh_TW", "ZH", "cmn-Hant", "tur", "AZE", "sr-Cyrl")] == [
        "zh", "zh", "zh", "tr", "az", "sr",
    ]  # fmt: skip
