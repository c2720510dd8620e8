"""Samples read together, column by column."""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from m3p.data.records import Members
from m3p.data.sample import Sample


class Samples(Sequence[Sample]):
    """N samples of an objective, in the order in which they were asked for.

    The columns are what objectives that read a hundred thousand passages a second work on: an object for each would cost as
    much as reading it. Indexing and iterating give `Sample` objects, which are made the first time and kept.

    Args:
        names: source and shard of each sample, and its id where its kind has one; as in `Sample.name`.
        owners: [N, 4] what the random choices of each sample are keyed by; as in `Sample.owner`.
        languages: language of each sample's source; "" where the record names its own.
        records: what the samples' kind made of their stored files (`m3p.data.kinds`).
        members: the stored files of each sample, from which its picture is decoded; empty for samples without pictures.
        contents: names of the pictures' contents, as in `Sample.content`; empty for samples without pictures.
    """

    def __init__(
        self,
        names: list[str],
        owners: NDArray[np.uint64],
        languages: list[str],
        records: list[Any],
        members: list[Members],
        contents: list[str],
    ) -> None:
        self.names, self.owners, self.languages, self.records = names, owners, languages, records
        self.members, self.contents = members, contents
        self.bad: list[tuple[int, str]] = []
        """Bad samples that were replaced: the number of the sample that stands there now, and what was wrong with which."""
        self._samples: list[Sample] | None = None

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, number: int) -> Sample: ...

    @overload
    def __getitem__(self, number: slice) -> "Samples": ...

    def __getitem__(self, number: int | slice) -> "Sample | Samples":
        if isinstance(number, int):
            return self._objects()[number]
        first, last, _ = number.indices(len(self))
        part = Samples(
            self.names[number],
            self.owners[number],
            self.languages[number],
            self.records[number],
            self.members[number],
            self.contents[number],
        )
        part._samples = None if self._samples is None else self._samples[number]
        part.bad = [(place - first, message) for place, message in self.bad if first <= place < last]
        return part

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._objects())

    def replace(self, number: int, sample: Sample, message: str) -> None:
        """Put `sample` in the place of sample `number`, which is bad: `message` says what is wrong with it."""
        self.names[number], self.owners[number] = sample.name, sample.owner
        self.languages[number], self.records[number] = sample.language, sample.record
        if self.contents:
            self.contents[number] = sample.content
        if self._samples is not None or sample.visual is not None:
            self._objects()[number] = sample
        self.bad.append((number, message))

    @property
    def messages(self) -> list[str]:
        """What was wrong with each bad sample that was replaced, in the order of the samples."""
        return [message for _, message in sorted(self.bad, key=lambda one: one[0])]

    def _objects(self) -> list[Sample]:
        if self._samples is None:
            owners = map(tuple, self.owners.tolist())
            contents = self.contents or repeat("")
            self._samples = list(map(Sample, self.names, owners, self.languages, self.records, contents))
        return self._samples


def join(parts: Sequence[tuple[NDArray[np.int64], Samples]]) -> Samples:
    """Return the samples of all parts as one; each part comes with the places [n] at which its samples stand in the whole."""
    if len(parts) == 1:
        return parts[0][1]
    count = sum(len(part) for _, part in parts)
    names, languages, records = [""] * count, [""] * count, [None] * count
    pictures = any(part.members for _, part in parts)
    kept, contents = list[Members]([{}] * count), [""] * count
    owners = np.zeros((count, 4), np.uint64)
    whole = Samples(names, owners, languages, records, *((kept, contents) if pictures else ([], [])))
    objects: list[Any] = [None] * count
    for places, part in parts:
        owners[places] = part.owners
        where = places.tolist()
        for place, name, language, record in zip(where, part.names, part.languages, part.records, strict=True):
            names[place], languages[place], records[place] = name, language, record
        if pictures:
            for place, members, content, sample in zip(where, part.members, part.contents, part, strict=True):
                kept[place], contents[place], objects[place] = members, content, sample
        whole.bad.extend((where[number], message) for number, message in part.bad)
    whole._samples = objects if pictures else None
    return whole
