"""Walk the headers of an uncompressed tar: ustar, GNU and pax long names and sizes.

`tarfile` needs a file object and builds a TarInfo of twenty fields a member, about 40 microseconds each; reading one
sample by offset needs names and extents only. The same walk serves whole archives (an open file) and the bytes of one
sample. Nothing is extracted: names are used as keys, never as paths.
"""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3p.data.shards.file_bytes import FileBytes

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
REGULAR = (b"0", b"\0", b"7")
LINKS = (b"1", b"2")
"""Hard and symbolic: their content stands elsewhere, in another member or in no archive at all."""
PADDING = 2**16
"""Bytes of zeros that may close a tar: its size is rounded up to whole records, of 10,240 bytes as a rule."""
SUMS = 65_521
"""How many values `head_sum` has; Adler-32's modulus."""


class TarError(Exception):
    """The bytes are not a tar that can be read; the text is the reason."""


class Member(NamedTuple):
    """One regular file of a tar; all four numbers are byte offsets or counts within the walked buffer."""

    name: str
    """Its name in the archive, with folders."""
    start: int
    """Where its first header block begins, extended headers (long names) included."""
    data: int
    """Where its content begins."""
    size: int
    """Bytes of content."""
    end: int
    """Where the next header begins: content rounded up to whole blocks."""


def walk(buffer: bytes | FileBytes, whole: bool, position: int = 0, links: list[str] | None = None) -> Iterator[Member]:
    """Yield the regular files of `buffer`, in order, from a member's start on; folders, links and devices are passed over.

    `whole` says that the buffer is a whole archive, which must close with a block of zeros (one that lacks it was cut
    off); otherwise it is one sample's span, which has none. The names of links, hard and symbolic, are added to `links`.
    Raises TarError for anything malformed.
    """
    start = position
    length = len(buffer)
    extended: dict[str, str] = {}
    while position < length:
        header = buffer[position : position + BLOCK]
        if header == ZERO_BLOCK:
            if whole and not extended:
                return
            raise TarError(f"unexpected end-of-archive block at byte {position}")
        kind, size = _kind_and_size(header, position)
        size = _override(extended, size)
        data = position + BLOCK
        end = data + -(-size // BLOCK) * BLOCK
        if end > length:
            raise TarError(f"member at byte {position} says {size} bytes, but the data ends at byte {length}")
        if kind == b"L":
            extended["path"] = _text(buffer[data : data + size].partition(b"\0")[0])
        elif kind == b"x":
            extended |= _pax_records(buffer[data : data + size])
        elif kind not in (b"K", b"g"):
            name = extended.get("path") or _name(header)
            if kind in REGULAR and not name.endswith("/"):
                yield Member(name, start, data, size, end)
            elif kind == b"S":
                raise TarError(f"member {name!r} is a sparse file, which is not supported")
            elif kind in LINKS and links is not None:
                links.append(name)
            start, extended = end, {}
        position = end
    if extended:
        raise TarError("the data ends after an extended header")
    if whole:
        raise TarError(f"the data ends at byte {length} without an end-of-archive block")


def is_followed(archive: FileBytes, position: int) -> bool:
    """Say whether another tar stands behind the end of a whole `archive`, as `cat` puts one there: no walk comes so far.

    `position` is where any of its members ends. Only what follows its end for `PADDING` bytes is looked at.
    """
    for member in walk(archive, whole=True, position=position):
        position = member.end
    # Behind the last file there are folders and links alone, whose headers are never all zeros.
    while position < len(archive) and archive[position : position + BLOCK] != ZERO_BLOCK:
        position += BLOCK
    return any(archive[position : position + PADDING])


def head_sum(header: bytes | memoryview) -> int:
    """Return a number below `SUMS` that tells headers apart as well as their own checksum does: 1 + the sum of all bytes.

    It is the low half of Adler-32, which takes a tenth of the time of Python's `sum`.
    """
    return zlib.adler32(header) & 0xFFFF


def head_sums(headers: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return `head_sum` of each of `headers` [N, BLOCK]: [N]."""
    return (headers.sum(1, np.int32) + 1) % SUMS


def _kind_and_size(header: bytes, position: int) -> tuple[bytes, int]:
    if len(header) < BLOCK:
        raise TarError(f"header at byte {position} is cut off")
    checksum = header[148:156]
    total = head_sum(header) - 1 - sum(checksum) + 8 * ord(" ")  # in the checksum eight spaces stand for its own field
    if (total - _number(checksum, position)) % SUMS:
        raise TarError(f"header at byte {position} has a wrong checksum")
    return header[156:157], _number(header[124:136], position)


def _number(field: bytes, position: int) -> int:
    """Parse a number: octal digits, or GNU's base-256 form for 8 GiB and above."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not digits.strip(b"01234567"):
        return int(digits or b"0", 8)
    raise TarError(f"header at byte {position} holds {digits[:16]!r} where a number belongs")


def _override(extended: dict[str, str], size: int) -> int:
    if "size" not in extended:
        return size
    text = extended.pop("size")
    if not (text.isascii() and text.isdigit()):
        raise TarError(f"a pax header says size {text[:16]!r}")
    return int(text)


def _pax_records(content: bytes) -> dict[str, str]:
    """Parse pax records "LENGTH KEY=VALUE\\n", keeping the two that matter here."""
    records = {}
    while content:
        digits, _, _ = content.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 20 else 0
        record = content[len(digits) + 1 : length]
        keyword, equals, value = record.partition(b"=")
        if not equals or length > len(content) or not value.endswith(b"\n"):
            raise TarError(f"broken pax record {content[:24]!r}")
        if keyword.startswith(b"GNU.sparse"):
            raise TarError("sparse files are not supported")
        if keyword in (b"path", b"size"):
            records[keyword.decode()] = _text(value[:-1])
        content = content[length:]
    return records


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    # GNU tars (magic "ustar  ") keep times where POSIX ones keep the folder.
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return _text(name)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
