"""Which pictures a source holds, by the numbers in its index files: a hash of each picture, and of its name in published sets.

A picture that two sources hold has one of these numbers in common, whatever the sources are called and however they are stored.
Nothing but index files is read: 16 bytes a sample.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3p.data.records import read_record
from m3p.data.shards.index_file import open_index
from m3p.data.source import Source
from m3p.data.storage.folders import RemoteFolder
from m3p.errors import BadSample

Numbers = NDArray[np.uint64]
MAX_REMOTE_SHARDS = 1000
"""Shards of a source behind a URL whose index files are fetched to be compared."""
NAMED = 5
"""Pictures that a message names."""


class Shared(NamedTuple):
    """Pictures of a source that are elsewhere too."""

    pictures: int
    """How many; 0: none."""
    ids: list[str]
    """Ids of the first few."""


def unknown(source: Source) -> str:
    """Return why the pictures of a source cannot be compared, wholly or in part; "" if they can."""
    shards = source.manifest.shards
    if isinstance(source.folder, RemoteFolder) and len(shards) > MAX_REMOTE_SHARDS:
        return f"{source.folder} is behind a URL and has more than {MAX_REMOTE_SHARDS:,} shards, whose indexes are not fetched"
    first = next((number for number, shard in enumerate(shards) if shard.samples), 0)
    contents, published = _columns(source, first)
    if contents.size and published.size:
        return ""
    what = "the names of published sets" if contents.size else "its pictures"
    return f"{source.folder} was indexed by an earlier version, which did not note {what}; run `m3p index` again"


def has_names(source: Source) -> bool:
    """Tell whether pictures of a source have names in published sets, by its first shard that holds a sample."""
    first = next((number for number, shard in enumerate(source.manifest.shards) if shard.samples), 0)
    return bool(_columns(source, first)[1].any())


def picture_numbers(source: Source) -> Numbers:
    """Return the numbers of all pictures of a source, sorted, each once: as far as they are known."""
    parts = [shard_numbers(source, shard) for shard in range(len(source.manifest.shards))]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))


def shard_numbers(source: Source, shard: int) -> Numbers:
    """Return the numbers of the pictures of a shard, in no order."""
    numbers = np.concatenate(_columns(source, shard))
    return numbers[numbers != 0]


def _columns(source: Source, shard: int) -> tuple[Numbers, Numbers]:
    """Return the hashes of pictures and of published names of a shard [samples], empty where its index lacks them."""
    entry = source.manifest.shards[shard]
    index = open_index(source.folder.file(entry.index_name, None), entry.samples)
    return np.frombuffer(index.contents, np.uint64), np.frombuffer(index.published, np.uint64)


class Gallery:
    """The pictures of a source, to be looked for in others."""

    def __init__(self, source: Source) -> None:
        self._source = source
        columns = [_columns(source, shard) for shard in range(len(source.manifest.shards))]
        rows: list[tuple[int, int, int]] = [
            (number, shard, sample)
            for shard, both in enumerate(columns)
            for column in both
            for sample, number in enumerate(column.tolist())
            if number
        ]
        self._numbers = np.array([number for number, _, _ in rows], np.uint64)
        self._places = [(shard, sample) for _, shard, sample in rows]

    def shared_with(self, others: Iterable[Numbers]) -> Shared:
        """Return which of the pictures have one of the numbers of `others`, which come in parts."""
        found = np.zeros(len(self._numbers), np.bool_)
        for numbers in others:
            found |= np.isin(self._numbers, numbers)
        places = dict.fromkeys(self._places[row] for row in found.nonzero()[0].tolist())
        return Shared(len(places), [self._id(*place) for place in list(places)[:NAMED]])

    def in_source(self, other: Source) -> Shared:
        """Return which of the pictures are in another source too."""
        return self.shared_with(shard_numbers(other, shard) for shard in range(len(other.manifest.shards)))

    def _id(self, shard: int, sample: int) -> str:
        """Return the id of a picture, or its place where it has none."""
        manifest = self._source.manifest
        try:
            record = read_record(self._source.members(shard, sample), manifest.language)
        except BadSample:
            return f"{manifest.shards[shard].name}#{sample}"
        return record.id or f"{manifest.shards[shard].name}#{sample}"
