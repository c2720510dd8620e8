"""Codes of languages: what a tag looks like, and which codes other people's files use."""

import re
from collections.abc import Collection

LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")
"""What a BCP-47 language tag looks like: "de", "zh-Hant", "ca-valencia"."""

_TWO_LETTERS = frozenset(
    """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et
    eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl
    km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj
    om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to
    tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
    """.split()  # noqa: SIM905 (a list would take a line a code)
)
"""ISO 639-1."""
_THREE_LETTERS = frozenset(
    """
    afr ara arz ast azb ben bos bul cat ceb ces cmn dan deu ell eng est eus fas fil fin fra glg guj heb hin hrv hun hye ind isl
    ita jpn kan kat kaz khm kor lao lav lit mal mar mkd mon mri mya nan nep nld nob nor pan pol por pus quz ron rus sin slk slv
    spa sqi srp swa swe tam tel tgl tha tur ukr urd uzb vie wuu yue zho zul
    """.split()  # noqa: SIM905
)
"""Codes of ISO 639-2 and 639-3 in captions of published sets. Not all: `url`, `key` and `ids` are codes of languages too."""


_SCRIPTS_AND_VARIANTS = frozenset("arab beng cyrl deva hans hant latn mong valencia".split())  # noqa: SIM905
_REGION = re.compile(r"[A-Za-z]{2}|[0-9]{3}")


def is_language_of_field(text: str) -> bool:
    """Tell codes of languages from other endings of fields: "zh-Hant" and "pt-BR", but neither "en-tokens" nor "en-score"."""
    return is_language(text) and all(
        _REGION.fullmatch(part) or part.lower() in _SCRIPTS_AND_VARIANTS for part in text.split("-")[1:]
    )


_SAME = {"iw": "he", "in": "id", "ji": "yi", "jw": "jv", "cmn": "zh", "nb": "no", "nn": "no", "fil": "tl"}
"""Codes of a language that has another code too: old ones, and those of its written forms."""


def is_among(language: str, others: Collection[str]) -> bool:
    """Tell whether a language is one of `others`, whatever region or script its tag names: zh is zh-CN, and he is iw."""
    return _plain(language) in map(_plain, others)


def _plain(tag: str) -> str:
    code = tag.partition("-")[0].casefold()
    return _SAME.get(code, code)


def is_language(text: str) -> bool:
    """Tell codes of languages from other names of fields and files: "de", "zh-Hant", "yue", but neither "url" nor "id-3x"."""
    code, _, rest = text.partition("-")
    if not LANGUAGE_TAG.fullmatch(text) or (rest and not rest[0].isalpha() and not rest.isdigit()):
        return False
    return code in _TWO_LETTERS or code in _THREE_LETTERS
