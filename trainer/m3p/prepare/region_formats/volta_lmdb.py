"""LMDB files of region features as volta and IGLUE hand them round (github.com/e-bug/volta): a picture a key, its id.

A value is a pickled dict of the columns of LXMERT's TSV: img_w, img_h, boxes [R, 4] in pixels and features [R, D], as base64
text or as arrays, and objects_id [R] or cls_prob [R, C] where there are classes. It is read as data, never executed
(plain_pickle.py). The key `keys` lists the others. Needs the library lmdb, which maps the file into memory: take files alone
whose origin you know.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3p.errors import UserError
from m3p.prepare.region_formats.plain_pickle import load_plain
from m3p.prepare.region_formats.stored import (
    MAX_REGIONS,
    MAX_SIDE,
    ReadOptions,
    Stored,
    class_numbers,
    likeliest,
    relative_boxes,
    unpack,
    whole,
)
from m3p.prepare.regions import Arrays
from m3p.visual.npz import LARGEST_NPZ

DATA = "data.mdb"
"""The file of a database that is a folder."""
KEYS = b"keys"
"""The key under which all others are listed."""


def read_volta_lmdb(source: Path, options: ReadOptions) -> Iterator[Stored]:
    """Yield the pictures of a database. Raises UserError where it is none, or lmdb is missing."""
    try:
        import lmdb
    except ImportError:
        raise UserError(f"{source}: reading LMDB needs lmdb: pip install 'm3p-trainer[lmdb]'") from None
    try:
        database = lmdb.open(str(source), subdir=source.is_dir(), readonly=True, lock=False, create=False)
    except lmdb.Error as error:
        raise UserError(f"{source}: not a readable LMDB database ({error}); copy it again.") from None
    with database:
        _check_whole(source, database)
        yield from _pictures(database, options)


def _check_whole(source: Path, database: Any) -> None:
    """Raise UserError where the file is shorter than it says: to read behind its end would end the process."""
    wanted = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
    found = (source / DATA if source.is_dir() else source).stat().st_size
    if found < wanted:
        raise UserError(f"{source}: has {found:,} bytes and should have {wanted:,}: it was cut; copy it again.")


def _pictures(database: Any, options: ReadOptions) -> Iterator[Stored]:
    with database.begin(buffers=True) as reader:
        for key, value in reader.cursor():
            if bytes(key) == KEYS:
                continue
            name = bytes(key).decode("utf-8", "replace")
            try:
                yield Stored(f"key {name!r}", name, _regions(value, options))
            except ValueError as error:
                yield Stored(f"key {name!r}", name, str(error))


def _regions(value: memoryview, options: ReadOptions) -> Arrays:
    """Return the arrays of a picture. Raises ValueError."""
    if len(value) > LARGEST_NPZ:
        raise ValueError(f"it has more than {LARGEST_NPZ:,} bytes")
    item = load_plain(bytes(value))
    if not isinstance(item, dict):
        raise ValueError(f"it is a {type(item).__name__}; the rule is a dict, as volta's h5_to_lmdb.py writes it")
    width, height = (whole(_first(item, name), MAX_SIDE, name) for name in ("img_w", "img_h"))
    boxes = _array(item, "boxes", "<f4", 4)
    if len(boxes) > MAX_REGIONS:
        raise ValueError(f"{len(boxes):,} regions; the rule is at most {MAX_REGIONS:,}")
    arrays: Arrays = {
        "boxes": relative_boxes(boxes, width, height),
        "features": _rows(item, "features", "<f4", len(boxes)).astype(np.float32),
    }
    if item.get("cls_prob") is not None:
        return arrays | likeliest(_rows(item, "cls_prob", "<f4", len(boxes)), options.keep_classes)
    known = item.get("objects_id") is not None
    return arrays | (class_numbers(_rows(item, "objects_id", "<i8", len(boxes))) if known else {})


def _first(item: dict[str, Any], name: str) -> object:
    """Return a number that may be stored as one, as its digits or as an array of one."""
    value = item.get(name, item.get(name.replace("img", "image")))
    return value.reshape(-1)[0].item() if isinstance(value, np.ndarray) and value.size == 1 else value


def _array(item: dict[str, Any], name: str, kind: str, columns: int) -> NDArray[Any]:
    """Return an array of so many columns, of an array or of base64 text. Raises ValueError."""
    value = item.get(name)
    if isinstance(value, str | bytes):
        return unpack(value, kind, 1, name).reshape(-1, columns)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or not value.size:
        raise ValueError(f"{name} is no array of numbers and no base64 text")
    return value.reshape(-1, columns)


def _rows(item: dict[str, Any], name: str, kind: str, rows: int) -> NDArray[Any]:
    """Return an array of so many rows, of an array or of base64 text. Raises ValueError."""
    value = item.get(name)
    if isinstance(value, str | bytes):
        return unpack(value, kind, rows, name)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or not value.size:
        raise ValueError(f"{name} is no array of numbers and no base64 text")
    return value.reshape(rows, -1)


def is_lmdb(path: Path) -> bool:
    """Tell whether a file or folder looks like a database of LMDB."""
    file = path / DATA if path.is_dir() else path
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(20)[16:] == b"\xde\xc0\xef\xbe"
