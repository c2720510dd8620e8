"""Code-switching: words of a caption swapped for translations out of word lists (M3P's multimodal code-switching).

Both routines of the released code, with its defects mended: words are looked up casefolded and without the punctuation
around them, then by their lemma; every choice comes from the numbers that the caller keys to the sample; a missing
or empty word list is an error instead of a run that silently does not switch.
"""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import simplemma
from pydantic import BaseModel, ConfigDict, Field, field_validator

from m3p.data.spacing import base_language, writes_spaces
from m3p.errors import UserError
from m3p.fields import MAY_CHANGE, Names
from m3p.keys import pick
from m3p.paths import PathField

TOKENS_KEPT = 200_000
"""Looked-up tokens that are remembered, some 300 bytes each; beyond, the memory starts anew."""

_GAP = re.compile(r"([\s/–—]+)")
_SENTENCE_ENDS = frozenset(".!?…")


class SwitchingConfig(BaseModel):
    """How captions are code-switched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dictionary: PathField = Field(
        json_schema_extra=MAY_CHANGE,
        description="Folder of word lists, SOURCE-LANG.tsv each, as `m3p prepare dictionary` writes it.",
    )
    languages: Names | None = Field(
        None, min_length=1, description="Languages to switch to; every word list of the folder if left out."
    )
    mode: Literal["per_word", "one_word"] = Field(
        "per_word",
        description="per_word: each word found is switched by its own coin. one_word: exactly one of the words found is.",
    )
    sentence_rate: float = Field(1.0, ge=0, le=1, description="Chance that a caption is switched at all.")
    word_rate: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Chance that a word found is switched, in a caption that is (the paper's beta); mode per_word only.",
    )
    source_language: str = Field(
        "en", description="Language of the captions; a source that has others too says `languages`."
    )

    @field_validator("source_language")
    @classmethod
    def _spaced(cls, language: str) -> str:
        if not writes_spaces(language):
            raise ValueError(
                f"captions in {language} are written without spaces, so no words can be told apart in them"
            )
        return language


@dataclass(frozen=True)
class Switched:
    """A caption after switching, with the counts that the monitor adds up."""

    text: str
    words: int
    """Tokens with a letter."""
    found: int
    """Words that at least one word list holds."""
    switched: int
    languages: dict[str, int]
    """Words switched to each language; they sum to `switched`."""


class _Token(NamedTuple):
    """A token after look-up: the word in it is token[start:end], the rest punctuation."""

    start: int
    end: int
    is_word: bool
    options: tuple[tuple[str, tuple[str, ...]], ...]
    """(language, translations) of each language that lists the word."""


class CodeSwitcher:
    """Switches captions by the word lists of a folder. What it returns depends on caption and draws alone.

    Raises:
        UserError: the folder or a word list is missing, empty or not WORD<TAB>TRANSLATION lines.
    """

    def __init__(self, config: SwitchingConfig) -> None:
        self._config = config
        paths = _word_lists(config)
        self.languages = tuple(paths)
        """Languages that words can be switched to."""
        self._lists = {language: _read(path) for language, path in paths.items()}
        self.has_lemmas = _has_lemmas(config.source_language)
        """Whether simplemma knows the source language; else only the forms that a list holds are found."""
        self._tokens: dict[str, _Token] = {}

    def switch(self, caption: str, draw: Iterator[float]) -> Switched:
        """Return `caption` with some words switched; white space and punctuation stay as they are.

        Every language that lists a word (or its lemma) is equally likely, then every translation there. The first word
        of a sentence hands its capital on. Two neighbours switched to the same language, if it is one written without
        spaces, are joined as that language would write them; at every other border, also between two such languages,
        the space stays, as in real mixed text: it keeps apart words that no reader would take for one.
        """
        pieces = _GAP.split(caption)
        texts, gaps = pieces[::2], pieces[1::2]
        tokens = [self._look_up(text) for text in texts]
        found = [place for place, token in enumerate(tokens) if token.options]
        initial = _sentence_starts(texts, tokens)
        languages: dict[int, str] = {}
        for place, language_draw, word_draw in self._draw(found, draw):
            token, text = tokens[place], texts[place]
            language, translations = pick(token.options, language_draw)
            word = pick(translations, word_draw)
            if place in initial and text[token.start].isupper():
                word = _capitalised(word, language)
            texts[place] = text[: token.start] + word + text[token.end :]
            languages[place] = language
        for left in range(len(gaps)):
            if left in languages and languages[left] == languages.get(left + 1) and not writes_spaces(languages[left]):
                gaps[left] = _joint(texts[left], gaps[left], texts[left + 1])
        return Switched(
            text="".join(text + gap for text, gap in zip(texts, [*gaps, ""], strict=True)),
            words=sum(token.is_word for token in tokens),
            found=len(found),
            switched=len(languages),
            languages=dict(Counter(languages.values())),
        )

    def coverage(self, captions: Iterable[str]) -> dict[str, float]:
        """Return for each language the share (0..1) of the captions' words that its list holds."""
        words, found = 0, Counter[str]()
        for caption in captions:
            for text in _GAP.split(caption)[::2]:
                token = self._look_up(text)
                words += token.is_word
                found.update(language for language, _ in token.options)
        return {language: found[language] / max(words, 1) for language in self.languages}

    def translations(self, word: str) -> tuple[str, ...]:
        """Return all that a word of a caption may be switched to, in any language; empty where no list holds it."""
        return tuple(text for _, texts in self._look_up(word).options for text in texts)

    def _draw(self, found: Sequence[int], draw: Iterator[float]) -> list[tuple[int, float, float]]:
        """Choose among the places `found`; return each with a draw in [0, 1) for its language and its translation."""
        if not next(draw) < self._config.sentence_rate or not found:
            return []
        if self._config.mode == "one_word":
            return [(pick(found, next(draw)), next(draw), next(draw))]
        coins = [(next(draw), place, next(draw), next(draw)) for place in found]
        return [(place, language, word) for coin, place, language, word in coins if coin < self._config.word_rate]

    def _look_up(self, text: str) -> _Token:
        token = self._tokens.get(text)
        if token is None:
            if len(self._tokens) >= TOKENS_KEPT:
                self._tokens.clear()
            start, end = _word_in(text)
            is_word = any(char.isalpha() for char in text[start:end])
            token = self._tokens[text] = _Token(start, end, is_word, self._options(text[start:end]) if is_word else ())
        return token

    def _options(self, word: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Look a word up in every list, as it stands and, in the lists without it, by its lemma."""
        form = lemma = _fold(word)
        if self.has_lemmas:
            lemma = _fold(simplemma.lemmatize(form, lang=self._config.source_language))
        lines = ((language, words.get(form) or words.get(lemma)) for language, words in self._lists.items())
        return tuple((language, tuple(line.split("\t"))) for language, line in lines if line)


def _fold(text: str) -> str:
    """Return the form under which words are listed and looked up."""
    return unicodedata.normalize("NFC", text.casefold())


def _is_wordlike(char: str) -> bool:
    """Tell letters, marks and digits from punctuation and symbols; `str.isalnum` would drop the vowels of Hindi."""
    return unicodedata.category(char)[0] in "LMN"


def _word_in(text: str) -> tuple[int, int]:
    """Return start and end of `text` without the punctuation around it; 0, 0 when it is nothing else."""
    places = [place for place, char in enumerate(text) if _is_wordlike(char)]
    return (places[0], places[-1] + 1) if places else (0, 0)


def _sentence_starts(texts: Sequence[str], tokens: Sequence[_Token]) -> set[int]:
    """Return the places of the tokens that begin a sentence: the first word, and each one behind a full stop."""
    starts, initial = set(), True
    for place, (text, token) in enumerate(zip(texts, tokens, strict=True)):
        if initial and token.end:
            starts.add(place)
            initial = False
        initial = initial or not _SENTENCE_ENDS.isdisjoint(text[token.end :])
    return starts


def _capitalised(word: str, language: str) -> str:
    """Return `word` with a capital in front where its script has one (title case: Georgian sentences have none)."""
    first = "İ" if word[0] == "i" and base_language(language) in ("az", "tr") else word[0].title()
    return first + word[1:]


def _joint(left: str, gap: str, right: str) -> str:
    """Return what stands between two words of one language without spaces: nothing, if both write its script there.

    Lists for such languages also hold words in Latin letters, and punctuation may stand in between: the gap stays.
    """
    border = (left[-1], right[0])
    runs_on = gap.isspace() and all(_is_wordlike(char) and char.lower() == char.upper() for char in border)
    return "" if runs_on else gap


def _has_lemmas(language: str) -> bool:
    try:
        simplemma.lemmatize("a", lang=language)
    except ValueError:
        return False
    return True


def _word_lists(config: SwitchingConfig) -> dict[str, Path]:
    """Return the word list of each language that is asked for, in the order of their codes."""
    folder, way_out = config.dictionary, "`m3p prepare dictionary` writes them"
    if not folder.is_dir():
        raise UserError(f"switching.dictionary: there is no folder {folder}. It holds the word lists; {way_out}.")
    prefix = f"{config.source_language}-"
    lists = {path.stem.removeprefix(prefix): path for path in sorted(folder.glob(f"{prefix}*.tsv"))}
    if not lists:
        raise UserError(f"switching.dictionary: {folder} holds no word list ({prefix}LANG.tsv); {way_out}.")
    if config.languages is None:
        return lists
    for language in config.languages:
        if language not in lists:
            raise UserError(
                f"switching.languages: {folder} holds no word list {prefix}{language}.tsv for {language!r}. It has "
                f"{', '.join(lists)}. Take {language!r} out, or add its list: {way_out}."
            )
    return {language: lists[language] for language in sorted(set(config.languages))}


def _read(path: Path) -> dict[str, str]:
    """Read a word list: folded word -> its translations, joined by tabs (half the memory of tuples).

    Pairs of equal words are left out: they switch nothing.
    """
    translations: dict[str, dict[str, None]] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                word, tab, translation = line.rstrip("\r\n").partition("\t")
                if not (word.strip() and tab and translation.strip()) or "\t" in translation:
                    raise UserError(
                        f"{path}, line {number}: {line.rstrip()!r} is not WORD<TAB>TRANSLATION. "
                        f"`m3p prepare dictionary` cleans a word list."
                    )
                form = _fold(word.strip())
                if _fold(translation.strip()) != form:
                    translations.setdefault(form, {})[translation.strip()] = None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text ({error.reason}). `m3p prepare dictionary` writes word lists."
        ) from None
    if not translations:
        raise UserError(
            f"{path}: no pair of different words in it, so nothing could be switched. Leave its language out of "
            f"switching.languages, or make the list anew with `m3p prepare dictionary`."
        )
    return {sys.intern(word): "\t".join(found) for word, found in translations.items()}
