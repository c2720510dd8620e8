"""Reads samples of shards by offset: one `pread` a sample, file descriptors bounded."""

import os
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from trainer.data.folders import Folder
from trainer.data.index import members
from trainer.data.index_file import IndexFile, index_faults, open_index
from trainer.errors import BadSample, OneRankError

MOST_OPEN = 128
"""Shards that a process keeps open, over all its sources: two descriptors each, of the 1,024 that are usual."""

MOST_LOST = 3
"""Times that a shard may go between fetching and opening it."""

_open: "OrderedDict[tuple[ShardReader, int], tuple[int, IndexFile]]" = OrderedDict()
"""Descriptor and index of the open shards, the one read last at the end. Here and not in the readers: a hundred
languages share the bound, and a reader that goes to another process leaves its descriptors behind."""


class ShardReader:
    """The shards of one source, opened when first read."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._shards = folder, folder.manifest.shards

    def span(self, shard: int, sample: int) -> bytes:
        """Return the bytes of a sample, all its members. Raises BadSample where the shard ends before."""
        descriptor, (offsets, _) = self._shard(shard)
        first, end = offsets[sample], offsets[sample + 1]
        span = os.pread(descriptor, end - first, first)
        if len(span) != end - first:
            raise BadSample(
                f"the shard ends at byte {first + len(span)}, inside the sample (truncated since it was indexed)"
            )
        return span

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        """Return the members of a sample by extension, `json`, `jpg`, ... Raises BadSample where the bytes are no tar."""
        return members(self.span(shard, sample))

    def sizes(self, shard: int, samples: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the bytes of the texts or region features of `samples` [N] of a shard, without reading them: [N]."""
        return self._shard(shard)[1].sizes[samples]

    def _shard(self, shard: int) -> tuple[int, IndexFile]:
        if (self, shard) not in _open:
            if len(_open) >= MOST_OPEN:
                _, (oldest, _) = _open.popitem(last=False)
                os.close(oldest)
            _open[self, shard] = self._load(shard)
        _open.move_to_end((self, shard))
        return _open[self, shard]

    def keep(self, shards: Collection[int]) -> None:
        """Close all shards of this source but `shards`: open files keep the space of what the cache has deleted."""
        for owner, shard in list(_open):
            if owner is self and shard not in shards:
                os.close(_open.pop((owner, shard))[0])

    def _load(self, shard: int) -> tuple[int, IndexFile]:
        entry = self._shards[shard]
        for _ in range(MOST_LOST):
            path = self._folder.file(entry.name, entry.bytes)
            index = self._folder.file(entry.index_name, None)
            with suppress(
                FileNotFoundError
            ):  # the cache has deleted it again: its bound is too small for the processes
                for fault in index_faults(index, entry.samples):
                    raise OneRankError(f"{self._folder}/{entry.name} {fault}: run `m3p index` again")
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC), open_index(index)
        raise OneRankError(
            f"{self._folder}/{entry.name} or its index was deleted while in use. Copy it there again; if it is remote, "
            "data.cache_bytes is too small for the windows that the processes of this node read: raise it"
        )
