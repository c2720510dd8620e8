"""A sample: what one looks like once it is read, and how its stored members become it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from m3p.batch import Picture
from m3p.errors import BadSample
from m3p.keys import draws

Members = Mapping[str, bytes | memoryview]
"""Contents of a sample's files by extension: "json", "jpg", "regions.npz"."""


@dataclass(slots=True)
class Sample:
    """One sample, read; its picture comes when it is decoded."""

    name: str
    """Source, shard and id, or number in the shard: no other sample has the same, and messages show it."""
    owner: tuple[int, ...]
    """What its random choices are keyed by: the hash of seed, objective and source, then epoch, shard, sample."""
    language: str
    text: str
    """The passage of a text source; "" for pictures."""
    captions: dict[str, list[str]]
    concept: str
    """Pictures of one concept share their captions; the sample's own name where there is none."""
    id: str = ""
    """Of the record; "" where it has none."""
    visual: Picture | None = None

    @property
    def picture(self) -> Picture:
        """The picture, of a sample that has one: of a pair, once it is decoded."""
        assert self.visual is not None, "sources of pairs load pictures"
        return self.visual

    def draws(self, purpose: str) -> Iterator[float]:
        """The sample's own random numbers for `purpose`: the same in every run, on every rank, in every worker."""
        return draws(*self.owner, purpose)


class Texts(NamedTuple):
    """Many passages, column by column: an object each would cost as much as reading them."""

    texts: list[str]
    names: list[str]
    """As of a `Sample`, and so the others."""
    languages: list[str]
    owners: NDArray[np.uint64]
    """[N, 4]"""
    bad: list[tuple[int, str]]
    """Of bad samples that were replaced: number of the passage, and as in `BadSamples`; in order of the passages."""


class BadSamples:
    """Bad samples met since the last look, as "source/shard, sample NUMBER: reason"."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen


def passage(content: bytes | memoryview | None) -> str:
    """Return the passage that the bytes of a KEY.txt hold (None: there is none). Raises BadSample."""
    if content is None:
        raise BadSample("no member txt")
    try:
        text = str(content, "utf-8").strip()
    except UnicodeDecodeError as error:
        raise BadSample(f"txt is not UTF-8 ({error.reason})") from error
    if not text:
        raise BadSample("an empty text")
    return text


def read_record(members: Members, language: str | None) -> dict[str, object]:
    """Return the JSON of a pair; a plain KEY.txt caption in `language` (img2dataset) stands in for missing captions.

    Raises BadSample.
    """
    try:
        record = _parse(members["json"]) if "json" in members else {}
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, or a number of thousands of digits
        raise BadSample(f"json cannot be read ({error})") from error
    if not isinstance(record, dict):
        raise BadSample("json is not an object")
    if "captions" not in record:
        if language is None:
            raise BadSample("json has no captions, and the manifest names no language for txt (`m3p index --language`)")
        record = {**record, "captions": {language: [passage(members.get("txt"))]}}
    return record


def _parse(content: bytes | memoryview) -> object:
    try:
        return orjson.loads(content)
    except ValueError:
        # What is no JSON by the book, and what Python's own parser takes all the same: pandas writes NaN.
        record = json.loads(bytes(content))
        _check_unicode(record)
        return record


def _check_unicode(record: object) -> None:
    """Raise BadSample if halves of characters ("\\ud800") are spelled where text is read: nothing else can write them.

    orjson refuses them, so that only what Python's own parser has taken need be looked through.
    """
    if not isinstance(record, dict):
        return
    for field in ("id", "concept", "captions"):
        try:
            json.dumps(record.get(field), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BadSample(f"{field} is not Unicode text ({error.reason})") from error


def named(record: dict[str, object], field: str) -> str:
    """Return the `id` or `concept` of a record; "" where it has none, or one that says nothing: null, "" or pandas' NaN."""
    value = record.get(field)
    return "" if value is None or value != value else str(value)


def choose_captions(record: dict[str, object], languages: list[str] | None) -> dict[str, list[str]]:
    """Return the captions of a record in `languages` (None: all). Raises BadSample."""
    captions = record["captions"]
    if not isinstance(captions, dict):
        raise BadSample("captions is not an object of language -> texts")
    chosen: dict[str, list[str]] = {}
    for language, texts in captions.items():
        if languages is not None and language not in languages:
            continue
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts or not all(map(_is_text, texts)):
            raise BadSample(f"captions.{language} is not a list of texts, or one of them is empty")
        chosen[language] = texts
    if not chosen:
        raise BadSample(f"no caption in {', '.join(languages or [])}" if languages else "no caption")
    return chosen


def _is_text(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip())
