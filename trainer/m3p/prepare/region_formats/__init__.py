"""Published files of region features, a reader each. A new one has a file here and a line in `FORMATS`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from m3p.errors import UserError
from m3p.prepare.region_folder import NamedBy
from m3p.prepare.region_formats.bottom_up import read_bottom_up
from m3p.prepare.region_formats.m3p_hdf5 import read_m3p_hdf5
from m3p.prepare.region_formats.mmf import INFO, read_mmf
from m3p.prepare.region_formats.stored import ReadOptions, Stored
from m3p.prepare.region_formats.vinvl import FEATURES, read_vinvl
from m3p.prepare.region_formats.volta_lmdb import is_lmdb, read_volta_lmdb


class Format(NamedTuple):
    """A format of region features."""

    read: Callable[[Path, ReadOptions], Iterator[Stored]]
    named_by: NamedBy
    """What its pictures are called by as a rule."""
    fits: Callable[[Path], bool]
    """Whether a file or folder looks like one of the format."""


def _is_hdf5(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


FORMATS = {
    "m3p-hdf5": Format(read_m3p_hdf5, NamedBy.IMAGE, _is_hdf5),
    "volta-lmdb": Format(read_volta_lmdb, NamedBy.ID, is_lmdb),
    "vinvl": Format(read_vinvl, NamedBy.ID, lambda path: path.name == FEATURES or (path / FEATURES).is_file()),
    "mmf": Format(read_mmf, NamedBy.IMAGE, lambda path: path.is_dir() and any(path.glob(f"*{INFO}"))),
    "bottom-up": Format(read_bottom_up, NamedBy.ID, lambda path: path.is_file() and ".tsv" in path.suffixes),
}
"""By name, in the order in which they are tried."""


def find_format(source: Path, name: str | None) -> tuple[str, Format]:
    """Return the format called `name`, or the one that `source` looks like. Raises UserError."""
    if not source.exists():
        raise UserError(f"{source} does not exist: give a file or folder of region features.")
    if name is not None:
        if name not in FORMATS:
            raise UserError(f"--format {name} is none; there are {', '.join(FORMATS)}.")
        return name, FORMATS[name]
    found = next((item for item in FORMATS.items() if item[1].fits(source)), None)
    if found is None:
        raise UserError(f"{source}: its format is not recognised; say --format: {', '.join(FORMATS)}.")
    return found
