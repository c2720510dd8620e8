"""A sample: what one looks like once it is read. How its stored members become it: records.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3p.batch import Picture
from m3p.keys import draws


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
    """Pictures of one concept share their captions; without one the name of the picture's content, or of the sample."""
    id: str = ""
    """Of the record; "" where it has none."""
    content: str = ""
    """Of a pair: a name of its picture's content, the same for equal pictures in all sources; "" where the index has none."""
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
