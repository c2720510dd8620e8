"""Reads samples of local shards by offset: one `pread` a sample, file descriptors bounded."""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np

from trainer.data.index import members
from trainer.errors import BadSample

MOST_OPEN = 64
"""Shards that are open at once; a window of the order touches a few."""


class ShardReader:
    """The shards of one source, opened when first read."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, tuple[int, np.ndarray[tuple[int], np.dtype[np.uint64]]]] = OrderedDict()

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

    def _shard(self, shard: int) -> tuple[int, np.ndarray[tuple[int], np.dtype[np.uint64]]]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= MOST_OPEN:
            _, (oldest, _) = self._open.popitem(last=False)
            os.close(oldest)
        path = self._paths[shard]
        offsets = np.load(path.with_suffix(".idx"), mmap_mode="r", allow_pickle=False)
        self._open[shard] = (os.open(path, os.O_RDONLY | os.O_CLOEXEC), offsets)
        return self._open[shard]
