"""A folder of region features, NAME.npz a picture: `m3p prepare regions` writes it, and `--regions` of the importers reads it."""

import os
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from m3p.atomic import replacing, write_text
from m3p.errors import UserError
from m3p.prepare.regions import Arrays, load_regions, pack_regions
from m3p.terminal import one_line

RECORD = "regions.json"
"""The file that says how a folder was made; a folder made otherwise has none."""
MAX_RECORD = 1 << 16
"""Bytes of it."""
LONGEST_NAME = 200
"""Bytes of a name: file systems allow 255, and a file that is being written has a longer one."""


class NamedBy(StrEnum):
    """What the files of a folder are named by."""

    ID = "id"
    """The id of a record."""
    IMAGE = "image"
    """The file name of a picture, without its extension."""


class RegionRecord(BaseModel):
    """How a folder of region features was made."""

    model_config = ConfigDict(extra="forbid")

    named_by: NamedBy
    made_from: dict[str, str]
    """What decides the features: the detector and its settings, or the format of the file."""


class RegionFolder:
    """A folder of region features, to be read. Raises UserError where it is none, or its record is broken."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"--regions {folder} is not a folder: give the folder that holds ID.npz files.")
        self.folder, self._record = folder, read_record(folder)

    def load(self, identity: str, image: object) -> tuple[str, Arrays]:
        """Return the name of a record's file and its regions. Raises ValueError.

        `image` is the path of its picture, or several at which it may be. The file is named by the id, or, where there is none
        of that name or the folder says so, by the picture.
        """
        others = [image] if isinstance(image, str) else image if isinstance(image, list) else []
        images = [Path(str(other)).stem for other in others]
        by_image = self._record is not None and self._record.named_by is NamedBy.IMAGE
        names = [] if by_image or "/" in identity or "\\" in identity else [identity]
        files = [f"{name}.npz" for name in dict.fromkeys((*names, *images))]
        found = [file for file in files if (self.folder / file).exists()]
        if not found and not names and not (by_image and files):
            rule = "a path of its picture" if by_image else "an id without slashes"
            raise ValueError(f"id {identity!r} names no file; with --regions the rule is {rule}")
        file = (found or files)[0]
        try:
            return file, load_regions(self.folder / file)
        except ValueError as error:
            raise ValueError(f"regions {file!r}: {error}") from None


def read_record(folder: Path) -> RegionRecord | None:
    """Return how a folder was made; None where it does not say. Raises UserError for a broken record."""
    path = folder / RECORD
    if not path.is_file():
        return None
    with path.open("rb") as file:
        content = file.read(MAX_RECORD)
    try:
        return RegionRecord.model_validate_json(content)
    except ValidationError as error:
        raise UserError(
            f"{path}: not written by `m3p prepare regions` ({error.errors()[0]['msg']}); make it again"
        ) from None


def write_record(folder: Path, record: RegionRecord) -> None:
    """Write how `folder` is made."""
    write_text(folder / RECORD, record.model_dump_json(indent=1) + "\n")


def check_name(name: str) -> str:
    """Return a name that a file may have. Raises ValueError for one that leads elsewhere, is hidden or too long."""
    if not name or name.startswith(".") or "/" in name or "\\" in name or one_line(name) != name:
        raise ValueError(
            f"{name[:LONGEST_NAME]!r} cannot name a file; the rule is a name without slashes and control characters that does "
            "not begin with a dot"
        )
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise ValueError(f"a name of {len(os.fsencode(name))} bytes; {LONGEST_NAME} are the most")
    return name


def is_done(folder: Path, name: str) -> bool:
    """Tell whether the regions called `name` are in the folder: a crash of the machine may leave a file of no bytes."""
    path = folder / f"{name}.npz"
    return path.is_file() and path.stat().st_size > 0


def feature_size(folder: Path) -> int | None:
    """Return the width of the features of the first picture in a folder that can be read; None where it holds none."""
    for path in folder.glob("*.npz"):
        with suppress(ValueError):  # of a file that is damaged, which the importers name
            return load_regions(path)["features"].shape[1]
    return None


def write_regions(folder: Path, name: str, arrays: Arrays) -> None:
    """Write NAME.npz, whole or not at all."""
    with replacing(folder / f"{name}.npz", durable=False) as aside:
        aside.write_bytes(pack_regions(arrays))
