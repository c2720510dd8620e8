"""The arrays of an npz as views of its bytes, where it is as `numpy.savez` writes it: uncompressed, in C order, without objects.

numpy's own reader copies an array several times and compiles the text of its header: for region features, longer than all
else that is done to them. zipfile lists the members here too, check sums are compared and numpy reads the headers, each
text once. What is unusual in any way is read by numpy, once its sizes have shown to be within bounds: a compressed member
of some kilobytes can claim to hold terabytes.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

LARGEST_NPZ = 64 * 2**20
"""Bytes of an npz, and of all of its arrays together: 4,000 regions of 2,048 float32 numbers have half of this."""
LONGEST_HEADER = 2**16
"""Bytes at the beginning of an array's file that its header must lie in."""
LOCAL = struct.Struct("<4s22xHH")
"""The head of a zip's member: its mark, and the lengths of the name and of the extra field that follow."""
MARK = b"PK\x03\x04"
"""How an npz, as any zip, begins."""
VERSION_1 = npy.magic(1, 0)


def read_npz(data: bytes | memoryview) -> Mapping[str, Any]:
    """Return the arrays of an npz by name.

    Raises nearly anything where it is broken, at once or when an array is asked for; ValueError where it is too large.
    """
    _check_size(len(data))
    return _views(io.BytesIO(data)) or _Archive(data)


def read_shapes(data: bytes | memoryview) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of an npz by name, from their headers alone. Raises as `read_npz` does."""
    _check_size(len(data))
    archive = _Archive(data)
    return {name: archive.header(name)[0] for name in archive}


def read_npy(content: bytes, name: str = "it") -> NDArray[Any]:
    """Return the array of an npy file, which messages call `name`. Raises nearly anything where it is broken."""
    shape, kind, rest = split_npy(content)
    if math.prod(shape) * max(kind.itemsize, 1) > len(rest) and not kind.hasobject:
        raise ValueError(f"{name} says it is {shape} of {kind}, but has {len(rest):,} bytes")
    return npy.read_array(io.BytesIO(content), allow_pickle=False)


def split_npy(content: bytes | memoryview) -> tuple[tuple[int, ...], np.dtype[Any], memoryview]:
    """Return the shape and type of the array of an npy file, and what stands behind its header. Raises as `read_npy`."""
    shape, kind, start = _any_header(content)
    return shape, kind, memoryview(content)[start:]


class _Archive(Mapping[str, Any]):
    """The arrays of any npz, each read by numpy when it is asked for; none is larger than the whole may be."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._zip = zipfile.ZipFile(io.BytesIO(data))
        self._members = {member.filename.removesuffix(".npy"): member for member in self._zip.infolist()}
        _check_size(sum(member.file_size for member in self._members.values()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> Any:
        """Return an array; the bytes of a member that is none."""
        content = self._open(name).read(LARGEST_NPZ + 1)
        return read_npy(content, name) if content.startswith(npy.MAGIC_PREFIX) else content

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return the shape and type of an array, from the beginning of its file."""
        shape, kind, _ = _any_header(self._open(name).read(LONGEST_HEADER))
        return shape, kind

    def _open(self, name: str) -> IO[bytes]:
        """Open a member. Of other ways to compress, Python gives out all that comes of some kilobytes at once: gigabytes."""
        member = self._members[name]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is compressed in another way than numpy does")
        return self._zip.open(member)


def _check_size(size: int) -> None:
    if size > LARGEST_NPZ:
        raise ValueError(f"it holds {size:,} bytes; {LARGEST_NPZ:,} are the most")


def _any_header(content: bytes | memoryview) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, type and where the data begins, of an npy file of any version. Raises ValueError."""
    file = io.BytesIO(content[:LONGEST_HEADER])
    read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    shape, _, kind = read(file)
    if min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape}")
    return shape, kind, file.tell()


def _views(file: io.BytesIO) -> dict[str, NDArray[Any]] | None:
    """Return all arrays, or None where any of them is not as `numpy.savez` writes it."""
    data, found = file.getbuffer(), {}
    try:
        for member in zipfile.ZipFile(file).infolist():
            found[member.filename.removesuffix(".npy")] = _array(_content(data, member))
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError):
        return None
    return found


def _content(data: memoryview, member: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of an array's file. Raises ValueError where they are not plainly there."""
    mark, name, extra = LOCAL.unpack_from(data, member.header_offset)
    first = member.header_offset + LOCAL.size
    start = first + name + extra
    content = data[start : start + member.file_size]
    plain = mark == MARK and member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
    same = data[first : first + name] == member.orig_filename.encode() and member.filename.endswith(".npy")
    if not plain or not same or len(content) != member.file_size or zlib.crc32(content) != member.CRC:
        raise ValueError("left to numpy")
    return content


def _array(content: memoryview) -> NDArray[Any]:
    """Return the array of an npy file, as a view. Raises ValueError for what is left to numpy."""
    start = len(VERSION_1) + 2
    end = start + int.from_bytes(content[len(VERSION_1) : start], "little")
    if content[: len(VERSION_1)] != VERSION_1:
        raise ValueError("left to numpy")
    shape, kind = _header(bytes(content[len(VERSION_1) : end]))
    return np.frombuffer(content, kind, math.prod(shape), end).reshape(shape)


@lru_cache(1024)
def _header(text: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type. Raises ValueError: objects, another order, nothing in it, or no header."""
    shape, fortran, kind = npy.read_array_header_1_0(io.BytesIO(text))
    if fortran or kind.hasobject or min(shape, default=1) < 1:
        raise ValueError("left to numpy")
    return shape, kind
