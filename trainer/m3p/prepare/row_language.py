"""The language that a record of captions names in a field of its own, as tables of many languages have it: {"language": "de"}."""

from collections.abc import Mapping

from m3p.data.languages import is_language

FIELDS = ("language", "lang", "LANGUAGE")
"""Fields that name it; the last as LAION has it."""


def own_language(record: Mapping[str, object]) -> str | None:
    """Return the language that a record names; None where it has no such field, or one that holds no code of a language."""
    for name in FIELDS:
        value = record.get(name)
        if isinstance(value, str) and is_language(code := value.strip().replace("_", "-")):
            return code
    return None


def language_mistake(record: Mapping[str, object], told: str | None) -> str:
    """Return what is wrong where a record names another language than the `told` one of its captions; "" where nothing is.

    en and en-US are one language here; en and eng, which have no letters in common by rule, are not compared.
    """
    own = own_language(record)
    if own is None or told is None:
        return ""
    one, other = (code.partition("-")[0].casefold() for code in (own, told))
    if one == other or len(one) != len(other):
        return ""
    return (
        f"it says itself that its language is {own}, and its captions are to be in {told}: name no language, so that each record "
        "has its own, or leave out the records of others (--skip-bad)"
    )
