"""The index file of a shard: where each sample lies in the tar, what is in it, and how long what makes it long is.

The index of shard-000000.tar is shard-000000.idx, eight arrays in numpy's .npy format, one behind the other:

    offsets     uint64 [samples + 1]  sample i is the bytes offsets[i]..offsets[i + 1] of the tar, headers included
    sizes       uint32 [samples]      bytes of its text or region features
    extensions  S32 [members]         the files that most samples of the shard consist of, in their order
    lengths     uint32 [samples, members]  bytes of each of them
    sums        uint16 [samples, members]  of its header
    contents    uint64 [samples]      a hash of its picture; of its region features without one; of its text
    published   uint64 [samples]      a hash of the name that its picture has in published sets; 0 without one
    seal        uint8 [61]            the shard's fingerprint, its probe (fingerprint.py), a version, and the CRC-32 of all before

Files of earlier versions lack `published`, or have the first five alone, and are read too.
`np.load(path, mmap_mode="r", allow_pickle=False)` reads the first without a copy. The idea is webdataset's wids and NVIDIA
DALI's wds2idx, which store one text line a member instead. Headers are parsed once, when a tar is indexed; whoever reads a
sample only looks whether they are still the same.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from m3p.atomic import replacing
from m3p.data.shards.fingerprint import DIGEST, PROBE, is_whole
from m3p.errors import OneRankError, out_of_files

Count = TypeVar("Count", int, NDArray[np.int64])

HEADER = 128
"""Bytes that numpy writes before each array."""
MAX_MEMBERS = 8
"""Files of a sample whose headers the index knows; samples of more are parsed each time."""
LONGEST_EXTENSION = 32
"""Bytes."""
NAME = f"S{LONGEST_EXTENSION}"
"""numpy's type of an extension."""
OTHER = 2**16 - 1
"""In place of a header's sum where a sample is not laid out like the others, or not plainly: no header has this sum."""
MOVED = "was prepared or indexed again since its manifest was read, or copied in part"
"""What the index of another state of the shard tells. To go on would train on other samples than the manifest says."""
FORMER = 5
"""Arrays of a file of an earlier version: the first fields of an `IndexFile`."""
VERSION = b"\2"
WITHOUT_PUBLISHED = b"\1"
"""The version before, which lacks that array."""
CHECKSUM = 4
"""Bytes of a CRC-32."""
SEAL = DIGEST + PROBE + len(VERSION) + CHECKSUM
"""Bytes of the seal: odd, so that the size of no file with one is that of a file without."""


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
    contents: memoryview
    """[samples] a hash of the picture, the region features or the text; 0 for none or an empty one. Empty in older files."""
    published: memoryview
    """[samples] a hash of `published_id`, as `content_number`; 0 for none. Empty in older files."""
    fingerprint: str
    """The shard's, as in the manifest; "" in older files."""
    probe: bytes
    """The shard's; empty in older files."""


def name_bytes(extension: str) -> bytes:
    """Return an extension as it stands in the tar, where names need not be UTF-8."""
    return extension.encode("utf-8", "surrogateescape")


def _unsealed_bytes(samples: Count, members: int) -> Count:
    """Return the size of the first five arrays."""
    return 5 * HEADER + 8 * (samples + 1) + 4 * samples + members * (LONGEST_EXTENSION + 6 * samples)


def index_bytes(samples: Count, members: int) -> Count:
    """Return the size of the index file of a shard of so many samples, most of them of so many files."""
    return _unsealed_bytes(samples, members) + 2 * (HEADER + 8 * samples) + HEADER + SEAL


def _bytes_without_published(samples: Count, members: int) -> Count:
    """Return the size that such a file had in the version before."""
    return index_bytes(samples, members) - (HEADER + 8 * samples)


def is_index_size(size: Count, samples: Count) -> "bool | NDArray[np.bool_]":
    """Tell whether an index file of so many bytes can be one of so many samples."""
    column = index_bytes(samples, 1) - index_bytes(samples, 0)
    found: bool | NDArray[np.bool_] = False
    for bytes_of in (index_bytes(samples, 0), _bytes_without_published(samples, 0), _unsealed_bytes(samples, 0)):
        rest = size - bytes_of
        found = found | ((rest % column == 0) & (rest >= column) & (rest <= MAX_MEMBERS * column))
    return found


def write_index(path: Path, index: IndexFile) -> None:
    """Write the file; a reader never sees a part. Its checksum tells one that a crash of the machine has cut."""
    extensions = np.array([name_bytes(name) for name in index.extensions], NAME)
    offsets = np.frombuffer(index.offsets, np.uint64)
    with replacing(path, durable=False) as aside, aside.open("w+b") as file:
        contents, published = np.frombuffer(index.contents, np.uint64), np.frombuffer(index.published, np.uint64)
        for array in (offsets, index.sizes, extensions, index.lengths, index.sums, contents, published):
            np.save(file, array, allow_pickle=False)
        file.seek(0)
        body = bytes.fromhex(index.fingerprint) + index.probe + VERSION
        checksum = zlib.crc32(body, zlib.crc32(file.read())).to_bytes(CHECKSUM, "little")
        np.save(file, np.frombuffer(body + checksum, np.uint8), allow_pickle=False)


def open_index(path: Path, samples: int) -> IndexFile:
    """Read the file of a shard of so many samples, whole. Look for `index_faults` first.

    It is not mapped: a map of a file that is cut short meanwhile ends the process.
    """
    content = path.read_bytes()
    column = index_bytes(samples, 1) - index_bytes(samples, 0)
    sealed = _is_sealed(len(content))
    version = content[-CHECKSUM - 1 : -CHECKSUM] if sealed else b""
    bytes_of = {VERSION: index_bytes, WITHOUT_PUBLISHED: _bytes_without_published}.get(version, _unsealed_bytes)
    members = (len(content) - bytes_of(samples, 0)) // column
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
    contents = take(samples, "u8").cast("Q") if sealed else memoryview(b"")
    published = take(samples, "u8").cast("Q") if version == VERSION else memoryview(b"")
    seal = bytes(take(SEAL, "u1")) if sealed else b""
    fingerprint, probe = seal[:DIGEST].hex(), seal[DIGEST : DIGEST + PROBE]
    return IndexFile(offsets, sizes, names, lengths, sums, contents, published, fingerprint, probe)


def _is_sealed(size: int) -> bool:
    """Tell files with a seal from those of earlier versions, by their size."""
    return size % 2 == 1


def index_faults(path: Path, samples: int, tar_bytes: int | None = None, fingerprint: str = "") -> Iterator[str]:
    """Yield what is wrong with the index at `path` of a shard of so many samples.

    With the bytes of its tar, all of the file is looked at; with the `fingerprint` that the manifest has, the index must be
    of the same state of the shard. Raises FileNotFoundError; OneRankError where too many files are open.
    """
    try:
        offsets, size = _read_offsets(path, samples)
    except FileNotFoundError:
        raise
    except OSError as error:
        if too_many := out_of_files(error):
            raise OneRankError(too_many) from None
        yield f"has an index that cannot be read ({path.name}: {error.strerror})"
        return
    except Exception:  # on broken bytes numpy's parser raises nearly anything, from MemoryError to TokenError
        yield f"has an index that cannot be read ({path.name})"
        return
    if offsets is None:
        yield f"has an index of another tar ({path.name})"
    elif not is_index_size(size, samples) or (is_whole(fingerprint) and not _is_sealed(size)):
        yield f"has an index of another version of this program, or a part of one ({path.name})"
    elif tar_bytes is not None and _is_sealed(size) and not _is_intact(path):
        yield f"has a damaged index ({path.name}: its checksum is another)"
    # The first need not be 0: a tar may begin with what belongs to no sample.
    elif fingerprint and _is_sealed(size) and (other := open_index(path, samples).fingerprint) != fingerprint:
        yield f"{MOVED} ({path.name} is of a shard {other[:12]}, the manifest's is {fingerprint[:12]})"
    elif tar_bytes is not None and (offsets[-1] > tar_bytes or (offsets[1:] <= offsets[:-1]).any()):
        yield f"has a damaged index ({path.name}: its offsets do not rise, or end after the tar)"


def _read_offsets(path: Path, samples: int) -> tuple[NDArray[np.uint64] | None, int]:
    """Return the first array of an index file, None if it is not one of `samples` + 1 places; and the bytes of the file.

    Raises whatever numpy raises on what is none of its files.
    """
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            return None, 0
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        if shape != (samples + 1,) or kind != np.uint64:
            return None, 0
        content = file.read(8 * (samples + 1))
        return np.frombuffer(content, np.uint64, samples + 1), os.fstat(file.fileno()).st_size


def _is_intact(path: Path) -> bool:
    """Tell whether a sealed file has the checksum of what it holds."""
    content = path.read_bytes()
    start = len(content) - SEAL
    # numpy's header of the seal lies between: it is the same in every file.
    body, seal = memoryview(content)[: start - HEADER], memoryview(content)[start:]
    checksum = zlib.crc32(seal[:-CHECKSUM], zlib.crc32(body))
    return (
        seal[:-CHECKSUM][-1:] in (VERSION, WITHOUT_PUBLISHED)
        and checksum.to_bytes(CHECKSUM, "little") == seal[-CHECKSUM:]
    )
