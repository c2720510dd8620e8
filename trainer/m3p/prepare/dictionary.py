"""Bilingual word lists in MUSE's layout, cleaned for code-switching.

Raw: en-LANG.tsv or en-LANG.txt, compressed with gzip or xz if need be, an English word and one translation a line, several
lines a word. A third column, such as a probability or a part of speech, is left out. Lists made from dictionaries for readers
hold much that would harm a caption; what is dropped here, and why, was seen in FreeDict.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from m3p.data.languages import LANGUAGE_TAG
from m3p.errors import UserError
from m3p.prepare.lines import check_once, files_of, listed, numbered_lines, plain_name
from m3p.prepare.staging import staged_folder
from m3p.terminal import say

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


SPLIT = re.compile(r"\.\d+-\d+$")
"""What MUSE puts behind the name of a list for a part of it: en-de.0-5000.txt."""
NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?%?")
PARTS_OF_SPEECH = frozenset(
    """
    noun verb adj adjective adv adverb prep preposition pron pronoun conj conjunction det num intj propn n v a r nn nns vb
    """.split()  # noqa: SIM905 (a list would take a line a word)
)
MARKS = re.compile(r"[][{}<>()|;,/\u060c\u061b\u3001\uff08\uff09\uff0c\uff0f\uff1b]")
"""What dictionaries write around notes ("Hund {m}", "Hund (pl. Hunde)") or between several translations ("Hund, Hunde / Rüde"),
with the commas and semicolons of Arabic and the wide marks of Chinese and Japanese: none of it belongs in a caption."""
MOSES = re.compile(r"\s*\|\|\|\s*")
"""Between the columns of Moses' phrase tables."""
MOSTLY = 0.8
"""Share of a list's lines that end with a part of speech where these are a column."""


MIN_ROWS = 4
"""Lines from which on a column that always says the same is no column of words."""


@dataclass
class WordList:
    """The cleaned list of one language."""

    translations: dict[str, list[str]] = field(default_factory=dict)
    """Casefolded English word to its translations, in the order of the file."""
    dropped: Counter[str] = field(default_factory=Counter)
    """How many pairs were dropped, by reason."""
    columns: int = 0
    """Lines whose columns after the second were left out."""

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
    if MARKS.search(translation):
        return "translation with brackets, or with several in one (, ; / |)"
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


def read_rows(path: Path) -> list[tuple[str, str, bool]]:
    """Return word, translation and whether more columns were left out, for each line. Raises UserError naming a broken line.

    Columns are parted by tabs or |||; in lines without any by spaces. There, numbers at the end are columns; so are parts of
    speech, if nearly all lines of the list end with one.
    """
    rows = []
    for number, line in numbered_lines(path):
        try:
            text = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid UTF-8 ({error.reason}). Convert the file.") from None
        if not text:
            continue
        word, translation, more = _split(text)
        if not translation:
            raise UserError(
                f"{path}, line {number}: {text[:60]!r} is one word; the rule is an English word, a tab or a space, "
                "and its translation."
            )
        rows.append((word, translation, more, "\t" not in text and not MOSES.search(text)))
    tagged = [spaced and _has_part_of_speech(translation) for _, translation, _, spaced in rows]
    if sum(tagged) < MOSTLY * len(rows):
        tagged = [False] * len(rows)
    return [
        (word, translation.rpartition(" ")[0] if tag else translation, more or tag)
        for (word, translation, more, _), tag in zip(rows, tagged, strict=True)
    ]


def _check_columns(path: Path, rows: list[tuple[str, str, bool]]) -> None:
    """Raise UserError where one of the two columns says the same in all lines of a list with more columns, as a code does."""
    columns = {"words": {word for word, _, _ in rows}, "translations": {translation for _, translation, _ in rows}}
    for column, found in columns.items():
        if len(found) == 1 and len(rows) >= MIN_ROWS and all(more for _, _, more in rows):
            raise UserError(
                f"{path}: the {column} are {found.pop()[:60]!r} in all {len(rows):,} lines, and more columns follow; the rule is "
                "an English word, a tab and its translation: keep these two columns, for instance with cut -f2,4."
            )


def _split(text: str) -> tuple[str, str, bool]:
    """Return word and translation ("" without one) of a line, and whether there were more columns."""
    columns = text.split("\t") if "\t" in text else MOSES.split(text)
    if len(columns) > 1:
        word, translation, *more = map(_unquoted, columns)
        return word, translation, bool(more)
    word, *rest = text.split()
    kept = list(rest)
    while len(kept) > 1 and NUMBER.fullmatch(kept[-1]):
        kept.pop()
    return word, " ".join(kept), len(kept) < len(rest)


def _unquoted(column: str) -> str:
    """Return a column without the spaces and the quotes that stand around it, as spreadsheets write them."""
    column = column.strip()
    return column[1:-1].strip() if len(column) > 2 and column[0] == column[-1] == '"' else column


def _has_part_of_speech(translation: str) -> bool:
    words = translation.split()
    return len(words) > 1 and words[-1].strip(".()[]").casefold() in PARTS_OF_SPEECH


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
    summary: dict[str, object] = {
        "source": SOURCE,
        "languages": {
            language: {"words": len(words.translations), "pairs": words.pairs} for language, words in lists.items()
        },
        "dropped": {language: dict(sorted(words.dropped.items())) for language, words in lists.items()},
    }
    if any(words.columns for words in lists.values()):
        summary["lines_with_more_columns"] = {language: words.columns for language, words in lists.items()}
    (folder / MARKER).write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def prepare_dictionary(
    folder: Path, output: Path, keep_function_words: bool = False, overwrite: bool = False
) -> dict[str, WordList]:
    """Clean FOLDER/en-LANG.tsv (or .txt) into OUTPUT/en-LANG.tsv; return the lists by language. Raises UserError."""
    lists: dict[str, WordList] = {}
    for path in tqdm(_find_lists(folder), desc="dictionary", unit="list", disable=None):
        language = _stem(path).removeprefix(f"{SOURCE}-")
        if not LANGUAGE_TAG.fullmatch(language):
            raise UserError(f"{path}: {language!r} is no language tag; the rule is en-LANG.tsv, such as en-de.tsv.")
        if not path.is_file():
            raise UserError(f"{path} is no file; the rule is a word list: take it away, or put the list there.")
        if language in lists:
            raise UserError(f"{folder} holds {_stem(path)} as .tsv and as .txt: keep one of them.")
        rows = read_rows(path)
        _check_columns(path, rows)
        lists[language] = clean([(word, translation) for word, translation, _ in rows], keep_function_words)
        lists[language].columns = sum(more for _, _, more in rows)
    with staged_folder(output, MARKER, overwrite) as staged:
        write_lists(staged, lists)
    return lists


def _find_lists(folder: Path) -> list[Path]:
    """Return the word lists of a folder, and say what else it holds. Raises UserError for none."""
    found, splits, others = [], [], []
    for path in files_of(folder):
        if not path.name.startswith(f"{SOURCE}-") or Path(plain_name(path)).suffix not in (".tsv", ".txt"):
            others.append(path)
        elif SPLIT.search(_stem(path)):
            splits.append(path)
        else:
            found.append(path)
    if splits and not found:
        raise UserError(
            f"{folder} holds only parts of lists, such as {splits[0].name}: rename those to use, as en-LANG.txt."
        )
    if not found:
        raise UserError(f"{folder} holds no en-LANG.tsv or en-LANG.txt: give a folder with one word list a language.")
    check_once(found, "they are one list")
    if splits:
        say(
            f"{folder}: passed over {listed(splits)}: parts of the lists beside them, which MUSE keeps for training and test."
        )
    if others:
        say(f"{folder}: not read: {listed(others)}; read are en-LANG.tsv and en-LANG.txt, also as .gz or .xz.")
    return found


def _stem(path: Path) -> str:
    """Return the name of a list without its endings: en-de.txt.gz -> en-de."""
    return Path(plain_name(path)).stem
