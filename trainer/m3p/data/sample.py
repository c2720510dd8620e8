"""A sample: what one looks like once it is read. How its stored members become it: records.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from m3p.batch import Picture
from m3p.keys import draws


@dataclass(slots=True)
class Sample:
    """One sample, read; its picture comes when it is decoded."""

    name: str
    """Source and shard, and its id or number where its kind has pictures. Messages show it."""
    owner: tuple[int, ...]
    """What its random choices are keyed by: the hash of seed, objective and source, then epoch, shard, sample."""
    language: str
    """Language of its source; "" where the record names its own."""
    record: Any
    """What the kind of its source made of its stored files (`m3p.data.kinds`)."""
    content: str = ""
    """A name of its picture's content, the same for equal pictures in all sources; "" where the index has none, and for text."""
    visual: Picture | None = None
    """Its picture, once it is decoded; None for samples without one."""

    @property
    def text(self) -> str:
        """The passage, of a sample of kind text."""
        assert isinstance(self.record, str), "only a sample of text is one passage"
        return self.record

    @property
    def captions(self) -> dict[str, list[str]]:
        """Language -> captions, of a pair."""
        found: dict[str, list[str]] = self.record.captions
        return found

    @property
    def concept(self) -> str:
        """The concept of a pair; pictures of one share their captions.

        Without one in the record, the name of the picture's content, or of the sample.
        """
        return self.record.concept or self.content or self.name

    @property
    def published(self) -> str:
        """The name of a pair's picture in published sets, the same in all of them; "" where its record has none."""
        found: str = self.record.published
        return found

    def has_same_picture(self, other: "Sample") -> bool:
        """Tell whether another pair's captions fit this one's picture: of one concept, content, or name in published sets."""
        return (
            self.concept == other.concept
            or (bool(self.content) and self.content == other.content)
            or (bool(self.published) and self.published == other.published)
        )

    @property
    def id(self) -> str:
        """The id of a pair; "" where the record has none."""
        found: str = self.record.id
        return found

    @property
    def picture(self) -> Picture:
        """The picture of a pair, once it is decoded."""
        assert self.visual is not None, "sources of pairs load pictures"
        return self.visual

    def draws(self, purpose: str) -> Iterator[float]:
        """The sample's own random numbers for `purpose`: the same in every run, on every rank, in every worker."""
        return draws(*self.owner, purpose)


class BadSamples:
    """Bad samples met since the last look, as "source/shard, sample NUMBER: reason"."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen
