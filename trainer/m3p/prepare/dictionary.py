"""Bilingual word lists in MUSE's layout, cleaned for code-switching.

Raw: en-LANG.tsv or en-LANG.txt, an English word and one translation a line, several lines a word. Lists made from
dictionaries for readers hold much that would spoil a caption; what is dropped here, and why, was seen in FreeDict.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from m3p.data.languages import LANGUAGE_TAG
from m3p.errors import UserError
from m3p.prepare.staging import staged_folder

MARKER = "dictionary.json"
SOURCE = "en"
MAX_WORDS = 4

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any no every each all both either neither another such
    i you he she it we they me him her us them my your his its our their mine yours hers ours theirs who whom whose
    which what myself yourself himself herself itself ourselves themselves
    of to in on at by for with from as into onto upon about than per via off out up down over through during
    against among within without toward towards until till since
    be am is are was were been being have has had having do does did done doing will would shall should can could
    may might must ought not
    and or but nor so yet if because although though while when where whether unless then there here
    """.split()  # noqa: SIM905 (a list would take a line a word)
)
"""English words that only grammar gives a meaning: FreeDict lists "a" as the musical note and "in" as an abbreviation.

Words of place (above, below, beside, behind, under, near, between, left, right) are not among them: in captions they
carry content.
"""

ENUMERATION = re.compile(r"^(?:(?:[IVX]+|[a-z]|[0-9]+)\.\s+)+")
"""A numbered sense left over before the translation: "a. wielki", "II.    lewy"."""


@dataclass
class WordList:
    """The cleaned list of one language."""

    translations: dict[str, list[str]] = field(default_factory=dict)
    """Casefolded English word to its translations, in the order of the file."""
    dropped: Counter[str] = field(default_factory=Counter)
    """How many pairs were dropped, by reason."""

    @property
    def pairs(self) -> int:
        """Number of (word, translation) pairs."""
        return sum(len(targets) for targets in self.translations.values())


def clean(pairs: Iterable[tuple[str, str]], keep_function_words: bool = False) -> WordList:
    """Clean (English word, translation) pairs; see `drop_reason` for what is dropped.

    All translations of a word are kept: the first lines of a word in FreeDict are no better than the last ("dog" in
    German begins with hoop tools, "cat" in Czech with "feline beast" and "tractor"), so a cut in file order would
    drop the right ones as readily.
    """
    found = WordList()
    tidied = [(" ".join(word.split()).casefold(), tidy(translation)) for word, translation in pairs]
    latin = _mostly_latin(translation for _, translation in tidied)
    seen: set[tuple[str, str]] = set()
    for pair in tidied:
        word, translation = pair
        reason = "duplicate" if pair in seen else drop_reason(word, translation, latin, keep_function_words)
        if reason:
            found.dropped[reason] += 1
            continue
        seen.add(pair)
        found.translations.setdefault(word, []).append(translation)
    found.translations = dict(sorted(found.translations.items()))
    return found


def tidy(translation: str) -> str:
    """Normalise a translation's Unicode and spaces, and take off the number of a sense."""
    return ENUMERATION.sub("", " ".join(unicodedata.normalize("NFC", translation).split()))


def drop_reason(word: str, translation: str, latin: bool, keep_function_words: bool) -> str | None:
    """Return why a pair is dropped, or None to keep it. `latin`: the language is written in Latin letters."""
    if " " in word:
        return "source of several words"
    if not any(letter.isalpha() for letter in word):
        return "source without letters"
    if not any(letter.isalpha() for letter in translation):
        return "translation without letters"
    # "ring" -> "Ring" is kept: capital letters are other pieces of the vocabulary.
    if word == translation:
        return "identity"
    if not keep_function_words and word in FUNCTION_WORDS:
        return "function word"
    if len(translation.split()) > MAX_WORDS:
        return f"translation longer than {MAX_WORDS} words"
    # Glosses left in English: "dog" -> "animal" in the Japanese list.
    if not latin and translation.isascii():
        return "translation in the wrong script"
    return None


def _mostly_latin(translations: Iterable[str]) -> bool:
    counts = Counter(
        all(unicodedata.name(letter, "").startswith("LATIN") for letter in translation if letter.isalpha())
        for translation in translations
    )
    return counts[True] >= counts[False]


def read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a raw list: parted by a tab, or by the first space. Raises UserError naming a broken line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: not valid UTF-8 ({error.reason}). Convert the file.") from None
            if not text:
                continue
            word, _, translation = text.partition("\t") if "\t" in text else text.partition(" ")
            if not translation.strip():
                raise UserError(
                    f"{path}, line {number}: {text[:60]!r} is one word; the rule is an English word, a tab or a space, "
                    "and its translation."
                )
            yield word, translation


def write_lists(folder: Path, lists: dict[str, WordList]) -> None:
    """Write en-LANG.tsv for each language, and dictionary.json. Raises UserError if a language has nothing left."""
    empty = [language for language, words in lists.items() if not words.translations]
    if empty:
        reasons = "; ".join(f"{language}: {dict(lists[language].dropped)}" for language in empty)
        raise UserError(
            f"the word list of {', '.join(empty)} is empty after cleaning ({reasons}): remove it or fill it."
        )
    for language, words in lists.items():
        lines = [f"{word}\t{target}\n" for word, targets in words.translations.items() for target in targets]
        (folder / f"{SOURCE}-{language}.tsv").write_text("".join(lines), encoding="utf-8")
    summary = {
        "source": SOURCE,
        "languages": {
            language: {"words": len(words.translations), "pairs": words.pairs} for language, words in lists.items()
        },
        "dropped": {language: dict(sorted(words.dropped.items())) for language, words in lists.items()},
    }
    (folder / MARKER).write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def prepare_dictionary(
    folder: Path, output: Path, keep_function_words: bool = False, overwrite: bool = False
) -> dict[str, WordList]:
    """Clean FOLDER/en-LANG.tsv (or .txt) into OUTPUT/en-LANG.tsv; return the lists by language. Raises UserError."""
    lists: dict[str, WordList] = {}
    paths = sorted(path for path in folder.glob(f"{SOURCE}-*") if path.suffix in (".tsv", ".txt"))
    if not paths:
        raise UserError(f"{folder} holds no en-LANG.tsv or en-LANG.txt: give a folder with one word list a language.")
    for path in tqdm(paths, desc="dictionary", unit="list", disable=None):
        language = path.stem.removeprefix(f"{SOURCE}-")
        if not LANGUAGE_TAG.fullmatch(language):
            raise UserError(f"{path}: {language!r} is no language tag; the rule is en-LANG.tsv, such as en-de.tsv.")
        if not path.is_file():
            raise UserError(f"{path} is no file; the rule is a word list: take it away, or put the list there.")
        if language in lists:
            raise UserError(f"{folder} holds {path.stem} as .tsv and as .txt: keep one of them.")
        lists[language] = clean(read_pairs(path), keep_function_words)
    with staged_folder(output, MARKER, overwrite) as staged:
        write_lists(staged, lists)
    return lists
