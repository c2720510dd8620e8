"""Lines of raw text files, compressed or not, and names of what a folder holds beside them."""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from tqdm import tqdm

from m3p.errors import UserError
from m3p.stored_files import check_no_pointer
from m3p.terminal import one_line

CHUNK = 2**16
"""Bytes of a compressed file that are read at once."""


class _Streams(io.RawIOBase):
    """What an .xz or .bz2 file holds: one stream, or several behind each other.

    Python's own readers end in silence where a stream is followed by something that is none, as a damaged second one is.
    """

    def __init__(self, raw: IO[bytes], make: Callable[[], lzma.LZMADecompressor | bz2.BZ2Decompressor]) -> None:
        self._raw, self._make, self._decoder = raw, make, make()

    def readable(self) -> bool:
        """Say that it is to be read."""
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        """Fill `buffer` from its start; return how many bytes, 0 at the end. Raises EOFError, LZMAError, OSError."""
        while True:
            given = b""
            if self._decoder.eof:
                given = (self._decoder.unused_data or self._raw.read(CHUNK)).lstrip(b"\0")  # xz pads its streams
                if not given:
                    return 0
                self._decoder = self._make()
            elif self._decoder.needs_input and not (given := self._raw.read(CHUNK)):
                raise EOFError("it ends inside a stream")
            if found := self._decoder.decompress(given, len(buffer)):
                buffer[: len(found)] = found
                return len(found)


Open = Callable[[IO[bytes]], IO[bytes]]
OPENERS: dict[str, Open] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),  # type: ignore[dict-item,return-value]
    ".xz": lambda raw: io.BufferedReader(_Streams(raw, lzma.LZMADecompressor)),
    ".bz2": lambda raw: io.BufferedReader(_Streams(raw, bz2.BZ2Decompressor)),
}
"""How to read what is compressed, by the ending of its name."""
OTHERS = (".zst", ".zip", ".7z", ".lz4", ".Z", ".br")
"""Endings of what is compressed in ways that are not read."""
LONGEST_LINE = 64 * 2**20
"""Bytes. A longer line is no line of text, and would fill the memory."""
NAMED = 8
"""Files that a message names."""


JSON_DOCUMENT = re.compile(rb"\s*([\[{]|\[\s*\{.*[\]},])\s*", re.DOTALL)
"""A first line of a JSON document over several lines, or of a list of objects."""


def check_no_document(path: Path, number: int, line: bytes, fields: str) -> None:
    """Raise UserError if the first line of a file begins a JSON document; `fields` says what an object of a line has."""
    if JSON_DOCUMENT.fullmatch(line.removeprefix(codecs.BOM_UTF8)):
        raise UserError(
            f"{path}, line {number}: begins a JSON document; the rule is one JSON object a line, {fields}: convert it, for "
            "instance with jq -c '.[]'."
        )


def check_no_table(path: Path, number: int, line: bytes) -> None:
    """Raise UserError if the first line of a file of records is one of columns, with commas or tabs: a CSV or TSV file."""
    start = line.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if start not in (b"{", b"[") and re.search(rb"[,\t]", line):
        raise UserError(
            f"{path}, line {number}: columns ({one_line(line[:40].decode(errors='replace'))!r}); the rule is one JSON object a "
            "line. `m3p prepare open-clip FILE` reads CSV, `m3p prepare parquet FILE` Parquet."
        )


def plain_name(path: Path) -> str:
    """Return a file's name without the ending that says how it is compressed: de.txt.gz -> de.txt."""
    return path.name.removesuffix(path.suffix) if path.suffix in OPENERS or path.suffix in OTHERS else path.name


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line) of a file, with a bar of bytes. Lines of a file without any \\n end with \\r.

    Raises UserError where the file is compressed in a way that is not read, is broken, is no UTF-8 by its bytes of 0, or has
    a line without an end.
    """
    if path.suffix in OTHERS:
        raise UserError(f"{path}: this compression is not read: unpack it, or compress it with gzip or xz.")
    check_no_pointer(path)
    bar = tqdm(
        total=path.stat().st_size, unit="B", unit_scale=True, desc=one_line(path.name), leave=False, disable=None
    )
    number = 0
    with path.open("rb") as raw, bar:
        file = OPENERS[path.suffix](raw) if path.suffix in OPENERS else raw
        try:
            while found := file.readline(LONGEST_LINE + 1):
                of_old_mac = not number and not found.endswith(b"\n")
                for line in found.splitlines(keepends=True) if of_old_mac else [found]:
                    number += 1
                    _check_line(path, number, line, len(found))
                    yield number, line
                bar.update(raw.tell() - bar.n)
        except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the disk's, and not bz2's or gzip's
                raise
            raise UserError(f"{path}, after line {number}: cannot be unpacked ({error}): copy it again.") from None


def _check_line(path: Path, number: int, line: bytes, size: int) -> None:
    """Raise UserError for a line, or several that end with \\r, of so many bytes together, that is none of a text in UTF-8."""
    if size > LONGEST_LINE:
        raise UserError(f"{path}, line {number}: has more than {LONGEST_LINE:,} bytes; the rule is lines of text.")
    if b"\0" in line:
        raise UserError(
            f"{path}, line {number}: holds bytes of 0, as texts in UTF-16 do; the rule is UTF-8: convert it, for instance with "
            "iconv -f UTF-16LE -t UTF-8."
        )


@contextmanager
def open_text(path: Path, wanted: str) -> Iterator[TextIO]:
    """Open a file of UTF-8 text for `csv`, compressed or not, line ends as they are.

    Raises UserError where it does not exist, saying what is `wanted`, and where it is compressed in a way that is not read, is
    broken or is no table of text.
    """
    if not path.is_file():
        raise UserError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: {wanted}.")
    if path.suffix in OTHERS:
        raise UserError(f"{path}: this compression is not read: unpack it, or compress it with gzip or xz.")
    check_no_pointer(path)
    csv.field_size_limit(LONGEST_LINE)
    with path.open("rb") as raw:
        file = OPENERS[path.suffix](raw) if path.suffix in OPENERS else raw
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            try:
                yield text
            except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
                raise UserError(f"{path} cannot be read ({error}): {wanted}, or copy it again.") from None


def files_of(folder: Path) -> list[Path]:
    """Return what a folder holds, in order, but for hidden things. Raises UserError if it is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that holds the files.")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def listed(paths: Iterable[Path]) -> str:
    """Return names of files, the first ones of many."""
    names = [one_line(path.name) for path in paths]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def check_once(paths: Collection[Path], rule: str) -> None:
    """Raise UserError if two files are the same one: compressed and not, or in small letters and large ones."""
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(plain_name(path).casefold(), path)  # DE and de are one language tag
        if other != path:
            raise UserError(f"{path.parent} holds {other.name} and {path.name}: {rule}; keep one of them.")
