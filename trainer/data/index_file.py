"""The index file of a shard: where each sample lies in the tar, and how long what makes it long is.

The index of shard-000000.tar is shard-000000.idx, two arrays in numpy's .npy format, one behind the other: uint64
[samples + 1], sample i being the bytes offsets[i]..offsets[i + 1] of the tar, headers included; and uint32 [samples], the
bytes of its text or region features. `np.load(path, mmap_mode="r", allow_pickle=False)` reads the former without a copy.
The idea is webdataset's wids and NVIDIA DALI's wds2idx, which store one text line a member instead.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Count = TypeVar("Count", int, NDArray[np.int64])

HEADER = 128
"""Bytes that numpy writes before each array."""


class IndexFile(NamedTuple):
    """What an index file holds."""

    offsets: memoryview
    """[samples + 1] bytes. An item of it is a plain number, in a tenth of the time that numpy takes."""
    sizes: NDArray[np.uint32]
    """[samples] bytes of KEY.txt or of KEY.regions.npz, 0 without: a tar pads every file to 512 bytes, which hides this."""


def index_bytes(samples: Count) -> Count:
    """Return the size of the index file of a shard of so many samples."""
    return 2 * HEADER + 8 * (samples + 1) + 4 * samples


def write_index(path: Path, offsets: NDArray[np.uint64], sizes: NDArray[np.uint32]) -> None:
    """Write what an `IndexFile` holds, aside first: a reader never sees a part."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.save(file, offsets, allow_pickle=False)
        np.save(file, sizes, allow_pickle=False)
    os.replace(partial, path)


def open_index(path: Path) -> IndexFile:
    """Map the file into memory. Look for `index_faults` first."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed when the arrays are gone
    samples = (len(content) - index_bytes(0)) // (index_bytes(1) - index_bytes(0))
    offsets = memoryview(content)[HEADER : HEADER + 8 * (samples + 1)].cast("Q")
    return IndexFile(offsets, np.frombuffer(content, np.uint32, samples, 2 * HEADER + offsets.nbytes))


def index_faults(path: Path, samples: int) -> Iterator[str]:
    """Yield what is wrong with the index at `path` of a shard of so many samples."""
    try:
        offsets = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        yield f"has an index that cannot be read ({path.name})"
        return
    if offsets.dtype != np.uint64 or offsets.shape != (samples + 1,):
        yield f"has an index of another tar ({path.name})"
    elif path.stat().st_size != index_bytes(samples):
        yield f"has an index of another version of this program, or a part of one ({path.name})"
