"""The index file of a shard: where each sample lies in the tar, what is in it, and how long what makes it long is.

The index of shard-000000.tar is shard-000000.idx, five arrays in numpy's .npy format, one behind the other:

    offsets     uint64 [samples + 1]  sample i is the bytes offsets[i]..offsets[i + 1] of the tar, headers included
    sizes       uint32 [samples]      bytes of its text or region features
    extensions  S32 [members]         the files that most samples of the shard consist of, in their order
    lengths     uint32 [samples, members]  bytes of each of them
    sums        uint16 [samples, members]  of its header

`np.load(path, mmap_mode="r", allow_pickle=False)` reads the first without a copy. The idea is webdataset's wids and NVIDIA
DALI's wds2idx, which store one text line a member instead. Headers are parsed once, when a tar is indexed; whoever reads a
sample only looks whether they are still the same.
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
MOST_MEMBERS = 8
"""Files of a sample whose headers the index knows; samples of more are parsed each time."""
LONGEST_EXTENSION = 32
"""Bytes."""
NAME = f"S{LONGEST_EXTENSION}"
"""numpy's type of an extension."""
OTHER = 2**16 - 1
"""In place of a header's sum where a sample is not laid out like the others, or not plainly: no header has this sum."""


class IndexFile(NamedTuple):
    """What an index file holds."""

    offsets: memoryview
    """[samples + 1] bytes. An item of it is a plain number, in a tenth of the time that numpy takes."""
    sizes: NDArray[np.uint32]
    """[samples] bytes of KEY.txt or of KEY.regions.npz, 0 without: a tar pads every file to 512 bytes, which hides this."""
    extensions: tuple[str, ...]
    """[members] of the files that most samples consist of: ("jpg", "json")."""
    lengths: NDArray[np.uint32]
    """[samples, members] bytes of the files' contents."""
    sums: NDArray[np.uint16]
    """[samples, members] `m3p.data.shards.tar.head_sum` of the files' headers, or OTHER."""


def name_bytes(extension: str) -> bytes:
    """Return an extension as it stands in the tar, where names need not be UTF-8."""
    return extension.encode("utf-8", "surrogateescape")


def index_bytes(samples: Count, members: int) -> Count:
    """Return the size of the index file of a shard of so many samples, most of them of so many files."""
    return 5 * HEADER + 8 * (samples + 1) + 4 * samples + members * (LONGEST_EXTENSION + 6 * samples)


def is_index_size(size: Count, samples: Count) -> "bool | NDArray[np.bool_]":
    """Tell whether an index file of so many bytes can be one of so many samples."""
    rest, column = size - index_bytes(samples, 0), index_bytes(samples, 1) - index_bytes(samples, 0)
    return (rest % column == 0) & (rest >= column) & (rest <= MOST_MEMBERS * column)


def write_index(path: Path, index: IndexFile) -> None:
    """Write the file, aside first: a reader never sees a part."""
    partial = path.with_name(f".{path.name}.partial")
    extensions = np.array([name_bytes(name) for name in index.extensions], NAME)
    with partial.open("wb") as file:
        for array in (np.frombuffer(index.offsets, np.uint64), index.sizes, extensions, index.lengths, index.sums):
            np.save(file, array, allow_pickle=False)
    os.replace(partial, path)


def open_index(path: Path, samples: int) -> IndexFile:
    """Map the file of a shard of so many samples into memory. Look for `index_faults` first."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed when the arrays are gone
    members = (len(content) - index_bytes(samples, 0)) // (index_bytes(samples, 1) - index_bytes(samples, 0))
    end = 0

    def take(items: int, kind: str) -> memoryview:
        nonlocal end
        start = end + HEADER
        end = start + items * np.dtype(kind).itemsize
        return memoryview(content)[start:end]

    offsets = take(samples + 1, "u8").cast("Q")
    sizes = np.frombuffer(take(samples, "u4"), np.uint32)
    extensions = np.frombuffer(take(members, NAME), NAME)
    lengths = np.frombuffer(take(samples * members, "u4"), np.uint32).reshape(samples, members)
    sums = np.frombuffer(take(samples * members, "u2"), np.uint16).reshape(samples, members)
    names = tuple(name.decode("utf-8", "surrogateescape") for name in extensions.tolist())
    return IndexFile(offsets, sizes, names, lengths, sums)


def index_faults(path: Path, samples: int, tar_bytes: int | None = None) -> Iterator[str]:
    """Yield what is wrong with the index at `path` of a shard of so many samples. Raises FileNotFoundError.

    With the bytes of its tar, the offsets are looked at too, all of them.
    """
    try:
        offsets = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise
    except OSError as error:
        yield f"has an index that cannot be read ({path.name}: {error.strerror})"
        return
    except Exception:  # on broken bytes numpy's parser raises nearly anything, from MemoryError to TokenError
        yield f"has an index that cannot be read ({path.name})"
        return
    if offsets.dtype != np.uint64 or offsets.shape != (samples + 1,):
        yield f"has an index of another tar ({path.name})"
    elif not is_index_size(path.stat().st_size, samples):
        yield f"has an index of another version of this program, or a part of one ({path.name})"
    # The first need not be 0: a tar may begin with what belongs to no sample.
    elif tar_bytes is not None and (offsets[-1] > tar_bytes or (offsets[1:] <= offsets[:-1]).any()):
        yield f"has a damaged index ({path.name}: its offsets do not rise, or end after the tar)"
