"""Reads samples of local shards by offset: one `pread` a sample, file descriptors bounded."""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np

from trainer.data.index import members
from trainer.errors import BadSample

Offsets = np.ndarray[tuple[int], np.dtype[np.uint64]]

MOST_OPEN = 128
"""Shards that a process keeps open, over all its sources: two descriptors each, of the 1,024 that are usual."""

_open: "OrderedDict[tuple[ShardReader, int], tuple[int, Offsets]]" = OrderedDict()
"""Descriptor and offsets of the open shards, the one read last at the end. Here and not in the readers: a hundred
languages share the bound, and a reader that goes to another process leaves its descriptors behind."""


class ShardReader:
    """The shards of one source, opened when first read."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        """Return the members of a sample by extension, `json`, `jpg`, ... Raises BadSample where the bytes are no tar."""
        descriptor, offsets = self._shard(shard)
        first, end = int(offsets[sample]), int(offsets[sample + 1])
        span = os.pread(descriptor, end - first, first)
        if len(span) != end - first:
            raise BadSample(
                f"the shard ends at byte {first + len(span)}, inside the sample (truncated since it was indexed)"
            )
        return members(span)

    def _shard(self, shard: int) -> tuple[int, Offsets]:
        if (self, shard) not in _open:
            if len(_open) >= MOST_OPEN:
                _, (oldest, _) = _open.popitem(last=False)
                os.close(oldest)
            path = self._paths[shard]
            offsets = np.load(path.with_suffix(".idx"), mmap_mode="r", allow_pickle=False)
            _open[self, shard] = (os.open(path, os.O_RDONLY | os.O_CLOEXEC), offsets)
        _open.move_to_end((self, shard))
        return _open[self, shard]
