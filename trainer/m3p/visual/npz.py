"""The arrays of an npz as views of its bytes, where it is as `numpy.savez` writes it: uncompressed, in C order, without objects.

numpy's own reader copies an array several times and compiles the text of its header: for region features, longer than all
else that is done to them. zipfile lists the members here too, check sums are compared and numpy reads the headers, each
text once. What is unusual in any way is left to numpy, which says what is wrong with it.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

LOCAL = struct.Struct("<4s22xHH")
"""The head of a zip's member: its mark, and the lengths of the name and of the extra field that follow."""
MARK = b"PK\x03\x04"
VERSION_1 = npy.magic(1, 0)


def read_npz(data: bytes | memoryview) -> Mapping[str, Any]:
    """Return the arrays of an npz by name. Raises nearly anything where it is broken, at once or when an array is asked for."""
    return _views(io.BytesIO(data)) or np.lib.npyio.NpzFile(io.BytesIO(data), allow_pickle=False)


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
