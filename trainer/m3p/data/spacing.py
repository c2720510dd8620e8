"""Which languages are written without spaces between words, by their tags: BCP 47 (`zh-Hant-TW`) or ISO 639 (`zho`, `chi`)."""

_SAME = {
    "aze": "az", "bod": "bo", "bur": "my", "chi": "zh", "cmn": "zh", "dzo": "dz", "jpn": "ja", "khm": "km", "lao": "lo",
    "mya": "my", "tha": "th", "tib": "bo", "tur": "tr", "zho": "zh",
}  # fmt: skip
"""Codes of three letters for languages that have one of two: ISO 639-3, and 639-2 where it differs."""
_UNSPACED = frozenset(
    """
    zh cdo cjy cpx czh czo gan hak hsn lzh mnp nan wuu yue
    ja km kxm lo tts my rki shn mnw th nod sou bo adx khg dz
    """.split()  # noqa: SIM905 (a list would take a line a code)
)
"""Chinese and its varieties; then Japanese, and languages of the Khmer, Lao, Burmese, Thai and Tibetan scripts."""
_SCRIPTS_WITHOUT_SPACES = frozenset(
    "bali bopo hanb hani hans hant hira hrkt java jpan kana khmr lana laoo mymr talu tale thai tibt".split()  # noqa: SIM905
)
"""Codes of ISO 15924."""


def base_language(tag: str) -> str:
    """Return the language of a tag in its shortest code: `zh_TW`, `ZH` and `cmn-Hant` are `zh`."""
    code = _parts(tag)[0]
    return _SAME.get(code, code)


def writes_spaces(tag: str) -> bool:
    """Say whether words have spaces between them. The script decides where the tag names one: `zh-Latn` (pinyin) has them."""
    for part in _parts(tag)[1:]:
        if len(part) == 4 and part.isalpha():
            return part not in _SCRIPTS_WITHOUT_SPACES
    return base_language(tag) not in _UNSPACED


def _parts(tag: str) -> list[str]:
    return tag.strip().lower().replace("_", "-").split("-")
