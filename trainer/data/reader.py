"""Reads samples of shards by offset: one `pread` a sample, file descriptors bounded."""

import mmap
import os
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trainer.data.folders import Folder
from trainer.data.index import members
from trainer.data.index_file import IndexFile, index_faults, open_index
from trainer.data.order import groups
from trainer.data.tar import BLOCK, lone_files
from trainer.errors import BadSample, OneRankError

MOST_OPEN = 128
"""Shards that a process keeps open, over all its sources: two descriptors each, of the 1,024 that are usual."""

MOST_LOST = 3
"""Times that a shard may go between fetching and opening it."""


@dataclass(frozen=True)
class _Opened:
    descriptor: int
    index: IndexFile

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Those of the index, [samples + 1]."""
        return np.frombuffer(self.index.offsets, np.int64)

    @cached_property
    def content(self) -> memoryview | None:
        """The tar, mapped into memory until nothing of it is in use; None if it is shorter than its index says.

        (Who cuts it short later ends the process that reads there, as with every mapped file.)
        """
        if not 0 < self.offsets[-1] <= os.fstat(self.descriptor).st_size:
            return None
        return memoryview(mmap.mmap(self.descriptor, int(self.offsets[-1]), access=mmap.ACCESS_READ))


_open: "OrderedDict[tuple[ShardReader, int], _Opened]" = OrderedDict()
"""The open shards, the one read last at the end. Here and not in the readers: a hundred
languages share the bound, and a reader that goes to another process leaves its descriptors behind."""


class ShardReader:
    """The shards of one source, opened when first read."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._shards = folder, folder.manifest.shards

    def span(self, shard: int, sample: int) -> bytes:
        """Return the bytes of a sample, all its members. Raises BadSample where the shard ends before."""
        opened = self._shard(shard)
        first, end = opened.index.offsets[sample], opened.index.offsets[sample + 1]
        span = os.pread(opened.descriptor, end - first, first)
        if len(span) != end - first:
            raise _cut_off(first + len(span))
        return span

    def spans(self, shards: NDArray[np.int64], samples: NDArray[np.int64]) -> Iterator[tuple[int, bytes | BadSample]]:
        """Yield (number, span) of `samples` [N] of `shards` [N], in any order; a BadSample where `span` would raise it."""
        last, numbers, wanted = -1, shards.tolist(), samples.tolist()
        # Shard by shard: not all that are asked for may be open at once.
        for place in shards.argsort(kind="stable").tolist():
            if numbers[place] != last:
                last = numbers[place]
                opened = self._shard(last)
            first, end = opened.index.offsets[wanted[place]], opened.index.offsets[wanted[place] + 1]
            span = os.pread(opened.descriptor, end - first, first)
            yield place, span if len(span) == end - first else _cut_off(first + len(span))

    def lone_files(
        self, shards: NDArray[np.int64], samples: NDArray[np.int64], extension: str
    ) -> list[memoryview | None]:
        """Return the content of each of `samples` [N] of `shards` [N] that is one file KEY.extension, without copying it.

        None for what is anything else, right or wrong: `read` says. For small files: of a sample alone, a call to the system
        costs more than all that is done here.
        """
        heads = np.zeros((len(shards), BLOCK), np.uint8)
        firsts, lengths = np.zeros((2, len(shards)), np.int64)
        contents: dict[int, memoryview] = {}
        for shard, mine in groups(shards):
            opened = self._shard(shard)
            if opened.content is None:
                continue
            contents[shard] = opened.content
            firsts[mine], of_shard = opened.offsets[samples[mine]], samples[mine] + 1
            lengths[mine] = opened.offsets[of_shard] - firsts[mine]
            blocks = np.frombuffer(opened.content, np.uint8, len(opened.content) // BLOCK * BLOCK).reshape(-1, BLOCK)
            heads[mine] = blocks.take(firsts[mine] // BLOCK, 0, mode="clip")  # a wrong index gives no plain header
        sizes, plain = lone_files(heads, lengths, extension)
        plain &= firsts % BLOCK == 0
        begins = firsts + BLOCK
        return [
            contents[shard][begin:end] if good else None
            for shard, begin, end, good in zip(
                shards.tolist(), begins.tolist(), (begins + sizes).tolist(), plain.tolist(), strict=True
            )
        ]

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        """Return the members of a sample by extension, `json`, `jpg`, ... Raises BadSample where the bytes are no tar."""
        return members(self.span(shard, sample))

    def sizes(self, shard: int, samples: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the bytes of the texts or region features of `samples` [N] of a shard, without reading them: [N]."""
        return self._shard(shard).index.sizes[samples]

    def _shard(self, shard: int) -> _Opened:
        if (self, shard) not in _open:
            if len(_open) >= MOST_OPEN:
                _, oldest = _open.popitem(last=False)
                os.close(oldest.descriptor)
            _open[self, shard] = self._load(shard)
        _open.move_to_end((self, shard))
        return _open[self, shard]

    def keep(self, shards: Collection[int]) -> None:
        """Close all shards of this source but `shards`: open files keep the space of what the cache has deleted."""
        for owner, shard in list(_open):
            if owner is self and shard not in shards:
                os.close(_open.pop((owner, shard)).descriptor)

    def _load(self, shard: int) -> _Opened:
        entry = self._shards[shard]
        for _ in range(MOST_LOST):
            path = self._folder.file(entry.name, entry.bytes)
            index = self._folder.file(entry.index_name, None)
            with suppress(
                FileNotFoundError
            ):  # the cache has deleted it again: its bound is too small for the processes
                for fault in index_faults(index, entry.samples):
                    raise OneRankError(f"{self._folder}/{entry.name} {fault}: run `m3p index` again")
                return _Opened(os.open(path, os.O_RDONLY | os.O_CLOEXEC), open_index(index))
        raise OneRankError(
            f"{self._folder}/{entry.name} or its index was deleted while in use. Copy it there again; if it is remote, "
            "data.cache_bytes is too small for the windows that the processes of this node read: raise it"
        )


def _cut_off(end: int) -> BadSample:
    return BadSample(f"the shard ends at byte {end}, inside the sample (truncated since it was indexed)")
