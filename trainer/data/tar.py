"""Walk the headers of an uncompressed tar: ustar, GNU and pax long names and sizes.

`tarfile` needs a file object and builds a TarInfo of twenty fields a member, about 40 microseconds each; reading one
sample by offset needs names and extents only. The same walk serves whole archives (a memory map) and the bytes of one
sample. Nothing is extracted: names are used as keys, never as paths.
"""

import mmap
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
REGULAR = (b"0", b"\0", b"7")


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


def walk(buffer: "bytes | mmap.mmap", whole: bool) -> Iterator[Member]:
    """Yield the regular files of `buffer`, in order; folders, links and devices are passed over.

    `whole` says that the buffer is a whole archive, which must close with a block of zeros (one that lacks it was cut
    off); otherwise it is one sample's span, which has none. Raises TarError for anything malformed.
    """
    position = start = 0
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
            start, extended = end, {}
        position = end
    if extended:
        raise TarError("the data ends after an extended header")
    if whole:
        raise TarError(f"the data ends at byte {length} without an end-of-archive block")


def plain_members(span: bytes) -> dict[str, bytes] | None:
    """Return extension -> content of the files of one sample's span, if all are as nearly all tools write them.

    None for anything else, right or wrong: `walk` says what it is, in three times the time.
    """
    found: dict[str, bytes] = {}
    sample, position, length = None, 0, len(span)
    while position < length:
        header = span[position : position + BLOCK]
        # A regular file, no folder beside the name, which ends before its field does, as the size does.
        if len(header) < BLOCK or header[156] != 48 or header[345] or header[99] or header[135]:
            return None
        digits, total = header[124:135], _adler_of(header[148:156])
        try:
            size = int(digits, 8) if digits.isdigit() else -1
        except ValueError:  # an 8 or 9
            return None
        if size < 0 or (zlib.adler32(header) & 0xFFFF) != total:
            return None
        data = position + BLOCK
        position = data + -(-size // BLOCK) * BLOCK
        if position > length:
            return None
        name = header[: header.index(0)]
        first = name.rfind(b"/") + 1
        dot = name.find(b".", first)
        extension = _lower(name[dot + 1 :])
        if dot <= first or not extension or extension in found or (sample is not None and name[:dot] != sample):
            return None
        sample = name[:dot]
        found[extension] = span[data : data + size]
    return found


@lru_cache(1 << 10)
def _lower(extension: bytes) -> str:
    return _text(extension).lower()


@lru_cache(1 << 14)
def _adler_of(checksum: bytes) -> int | None:
    """Return the low half of Adler-32 of a header whose checksum field is `checksum`; None if it is not of the usual form.

    That half is 1 + the sum of all bytes, in a tenth of the time of Python's `sum`; in the checksum eight spaces stand for
    its own field.
    """
    digits = checksum[:6]
    try:
        total = int(digits, 8) if digits.isdigit() and checksum[6:] == b"\0 " else None
    except ValueError:
        return None
    return None if total is None else (total + 1 - 8 * ord(" ") + sum(checksum)) % 65_521


def lone_files(
    heads: NDArray[np.uint8], lengths: NDArray[np.int64], extension: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Look at the first blocks `heads` [N, BLOCK] of spans of `lengths` [N]: -> (bytes of content [N], which are plain [N]).

    Plain is one file KEY.extension with the header that nearly all tools write; of others, right or wrong, nothing is said,
    as by `plain_members`. All are looked at together: one by one, in Python, they take longer than their texts to read.
    """
    sizes, plain = _octal(heads[:, 124:135])
    totals, fine = _octal(heads[:, 148:154])
    # The checksum's own eight bytes count as spaces.
    sums = heads.sum(1, np.int32) - heads[:, 148:156].sum(1, np.int32) + 8 * ord(" ")
    plain &= fine & (sums == totals) & (lengths == BLOCK + -(-sizes // BLOCK) * BLOCK)
    plain &= (heads[:, list(_PLAIN)] == list(_PLAIN.values())).all(1)
    names, ending = np.ascontiguousarray(heads[:, :100]).view("S100")[:, 0], b"." + extension.encode()
    plain &= (heads[:, :100] == 0).argmax(1) == np.strings.str_len(names)  # zeros stand behind the name alone
    plain &= np.strings.endswith(names, ending) & (np.strings.count(names, b".") == 1)  # a key has no dot
    plain &= ~np.strings.endswith(names, b"/" + ending) & (names != ending)
    return sizes, plain


_PLAIN = {99: 0, 135: 0, 154: 0, 155: ord(" "), 156: ord("0"), 345: 0}
"""Bytes of a plain header: name and size end before their fields do; a checksum; a regular file; no folder beside the name."""
_POWERS = 8 ** np.arange(10, -1, -1)


def _octal(digits: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Read octal numbers [N, D]: -> (numbers [N], where there are digits alone [N])."""
    values = digits - np.uint8(ord("0"))  # what stands before "0" becomes large
    return values @ _POWERS[-digits.shape[1] :], np.less(values, 8).all(1)


def _kind_and_size(header: bytes, position: int) -> tuple[bytes, int]:
    if len(header) < BLOCK:
        raise TarError(f"header at byte {position} is cut off")
    checksum = header[148:156]
    # The low half of Adler-32 is 1 + the sum of the bytes, mod 65521, in a tenth of the time of Python's `sum`.
    total = (zlib.adler32(header) & 0xFFFF) - 1 - sum(checksum) + 8 * ord(" ")
    if (total - _number(checksum, position)) % 65_521:
        raise TarError(f"header at byte {position} has a wrong checksum")
    return header[156:157], _number(header[124:136], position)


def _number(field: bytes, position: int) -> int:
    """Parse a number: octal digits, or GNU's base-256 form for 8 GiB and above."""
    if field[:-1].isdigit() and field[-1] in b" \0":  # as nearly all are written
        try:
            return int(field[:-1], 8)
        except ValueError:
            pass
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if digits.isdigit() or not digits:
        try:
            return int(digits or b"0", 8)
        except ValueError:
            pass
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
