"""The parts of an index: embeddings of some thousand pictures with their ids, each part whole on disk or absent.

A part is two files. `parts/000003.json` lists the pictures and names the other file, `parts/000003-CHECKSUM.npy`, with their
vectors; it is written last, so that a kill leaves no half of a part. A picture's number is that of its part and its row in it
when it was written; it stays when other pictures are removed, and no other picture gets it.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from m3p.atomic import publish
from m3p.data.storage.file_map import FileMap
from m3p.errors import UserError, out_of_files
from m3p.search.checked import file_checksum, read_checked, write_checked
from m3p.stored_files import load_npy
from m3p.visual.npz import split_npy

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
PART_ROWS = 4096
"""Pictures of a part: what a kill costs at most."""
ROW_BITS = 20
"""Bits of a picture's number that count rows."""
MAX_TABLE_BYTES = 256 * 2**20
"""Bytes of a part's list that is read."""
LISTS_KEPT = 256
"""Lists of parts that stay in memory while queries are answered: some 1.5 MB each."""
FOLDER = "parts"
_LIST = re.compile(r"[0-9]{6}\.json")
"""Name of a part's list; copies of one under another name are none."""


@dataclass(frozen=True)
class Entry:
    """One picture of an index."""

    row: int
    """Its row in the part as first written."""
    id: str
    origin: int
    """Which of the index's origins it came from."""
    place: str
    """Where it lies there: "shard#number", or a file's name."""
    stamp: str
    """Size and time of a file; "" in shards."""
    content: str
    """Name of its content."""
    caption: str
    language: str


class Table(BaseModel):
    """The list of a part: columns of `Entry`, in the order of the vectors. Columns are read ten times faster than objects."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vectors: str
    """Name of the file of vectors; "" for a part whose pictures were all removed."""
    checksum: str
    """Of that file."""
    row: list[int]
    id: list[str]
    origin: list[int]
    place: list[str]
    stamp: list[str]
    content: list[str]
    caption: list[str]
    language: list[str]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if {len(getattr(self, field.name)) for field in fields(Entry)} != {len(self.row)}:
            raise ValueError("its columns differ in length")
        if self.row != sorted(set(self.row)) or (self.row and not 0 <= self.row[0] <= self.row[-1] < 1 << ROW_BITS):
            raise ValueError("its rows are not in order")
        if Path(self.vectors).name != self.vectors:
            raise ValueError(f"vectors is {self.vectors!r}; the rule is a file's name")
        return self

    def entries(self) -> list[Entry]:
        """Return the pictures as objects."""
        columns = (getattr(self, field.name) for field in fields(Entry))
        return [Entry(*values) for values in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Part:
    """A part whose list has been looked at; the list itself is read again when it is needed."""

    folder: Path
    number: int
    numbers: Numbers
    """[rows] of its pictures, ascending."""
    file: str
    """Name of its file of vectors."""
    checksum: str

    def table(self) -> Table:
        """Return its list. Raises UserError where it is damaged, or has changed since the index was opened."""
        table = _read_table(_list_path(self.folder, self.number), self.checksum)
        if table.checksum != self.checksum:
            raise UserError(f"{self.folder}: the index has changed since it was opened; open it again")
        return table

    def vectors(self, width: int) -> Floats:
        """Return [rows, width], read into memory. Raises UserError where the file is not what the list says."""
        if not len(self.numbers):
            return np.zeros((0, width), np.float32)
        path = self.folder / FOLDER / self.file
        try:
            found = load_npy(path)
        except (OSError, ValueError) as error:
            raise self._unreadable(path, error) from error
        self._check_shape(path, found, width)
        return found

    def mapped(self, width: int) -> "MappedRows":
        """Return the same, mapped. Raises UserError as `vectors` does."""
        path = self.folder / FOLDER / self.file
        if not len(self.numbers):
            return MappedRows(path, None, np.zeros((0, width), np.float32))
        try:
            found = MappedRows.of(path)
        except Exception as error:  # on broken bytes numpy's parser raises nearly anything
            raise self._unreadable(path, error) from error
        self._check_shape(path, found.rows, width)
        return found

    def _unreadable(self, path: Path, error: Exception) -> UserError:
        if isinstance(error, OSError) and (too_many := out_of_files(error)):
            return UserError(too_many)
        return UserError(f"{path} cannot be read ({error}); put a copy back, or {self._way_out}")

    def _check_shape(self, path: Path, found: NDArray[Any], width: int) -> None:
        """Raise UserError where an array is not what the list says."""
        if found.dtype != np.float32 or found.shape != (len(self.numbers), width):
            raise UserError(f"{path}: {found.dtype} {found.shape}, where {len(self.numbers)} x {width} are listed")

    @property
    def _way_out(self) -> str:
        return _embed_again(_list_path(self.folder, self.number))

    def check(self) -> None:
        """Read the file of vectors once and compare its checksum. Raises UserError."""
        path = self.folder / FOLDER / self.file
        try:
            whole = not len(self.numbers) or file_checksum(path) == self.checksum
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}); put a copy back, or {self._way_out}") from error
        if not whole:
            raise UserError(f"{path} is damaged: its checksum is another; put a copy back, or {self._way_out}")


@dataclass(frozen=True)
class MappedRows:
    """The vectors of a part in a mapped file, which somebody may cut short meanwhile."""

    path: Path
    map: FileMap | None
    """None for a part without pictures."""
    rows: NDArray[Any]
    """[rows, width]; to be read by `take` alone."""

    @classmethod
    def of(cls, path: Path) -> Self:
        """Map an .npy file. Raises nearly anything where it is broken."""
        with path.open("rb") as file:
            found = FileMap(file.fileno(), os.fstat(file.fileno()).st_size)
        with found.watched():
            shape, kind, content = split_npy(found.content)
        if not found.is_whole() or len(content) != math.prod(shape) * kind.itemsize or kind.hasobject:
            raise ValueError(f"it has no array of {kind} {shape}")
        return cls(path, found, np.frombuffer(content, kind).reshape(shape))

    def take(self, places: Numbers) -> Floats:
        """Return the rows at `places` [N], copied: [N, width]. Raises UserError where the file was cut short."""
        if self.map is None:
            found: Floats = self.rows[places]
            return found
        with self.map.watched():
            found = self.rows[places]
        if not self.map.is_whole():
            raise UserError(f"{self.path} was cut short while it was searched: put a copy back, and start again")
        return found


def _embed_again(path: Path) -> str:
    """Return what to do where the part of the list `path` is damaged."""
    return f"delete {path} and give the command `m3p index-pictures` again, which embeds its pictures once more"


@lru_cache(maxsize=LISTS_KEPT)
def _read_table(path: Path, _checksum: str) -> Table:
    return read_checked(path, Table, MAX_TABLE_BYTES, _embed_again(path))


def read_parts(folder: Path) -> list[Part]:
    """Return the parts of an index in order. Raises UserError where a list is damaged."""
    paths = sorted(path for path in (folder / FOLDER).glob("*.json") if _LIST.fullmatch(path.name))
    return [
        _part(folder, int(path.stem), read_checked(path, Table, MAX_TABLE_BYTES, _embed_again(path))) for path in paths
    ]


def write_part(folder: Path, number: int, entries: Sequence[Entry], vectors: Floats) -> Part:
    """Write a part, in place of an older one of this number, whose vectors are deleted; return it."""
    old = list((folder / FOLDER).glob(f"{number:06d}-*.npy"))
    name, digest = "", ""
    if len(entries):
        name, digest = _write_vectors(folder / FOLDER, number, vectors)
    columns = {field.name: [getattr(entry, field.name) for entry in entries] for field in fields(Entry)}
    table = Table(vectors=name, checksum=digest, **columns)
    write_checked(_list_path(folder, number), table)
    for path in old:
        if path.name != name:
            path.unlink()
    return _part(folder, number, table)


def _part(folder: Path, number: int, table: Table) -> Part:
    numbers = np.array(table.row, np.int64) + (number << ROW_BITS)
    return Part(folder, number, numbers, table.vectors, table.checksum)


def _list_path(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"{number:06d}.json"


def _write_vectors(folder: Path, number: int, vectors: Floats) -> tuple[str, str]:
    """Write [rows, width] and return the file's name and checksum."""
    aside = folder / f".{number:06d}.partial"
    with aside.open("wb") as file:
        np.save(file, np.ascontiguousarray(vectors, np.float32))
    digest = file_checksum(aside)
    name = f"{number:06d}-{digest}.npy"
    publish(aside, folder / name)
    return name, digest
