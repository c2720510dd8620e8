"""M3P's own HDF5 files of region features (what its loader opens): N pictures of up to 100 regions.

image_id [N] texts, the names of the pictures' files; wh [N, 2], in spite of its name height, then width; bbox (or boxes)
[N, 100, 4] in pixels; features [N, 100, D]; objects (or object) [N, 100] or distribution [N, 100, C]. `num_boxes` is not
followed, as by M3P itself; rows of zeros at the end are padding and are left out.

A HDF5 file may lead into other files; such parts are refused. Needs h5py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3p.errors import UserError
from m3p.prepare.region_formats.stored import (
    MAX_REGIONS,
    MAX_SIDE,
    ReadOptions,
    Stored,
    class_numbers,
    likeliest,
    relative_boxes,
    whole,
)
from m3p.prepare.regions import Arrays

NAMES = {
    "image_id": ("image_id",),
    "wh": ("wh",),
    "boxes": ("bbox", "boxes"),
    "features": ("features",),
    "objects": ("objects", "object"),
    "distribution": ("distribution",),
}
"""What a part of the file is called."""
NEEDED = ("image_id", "wh", "boxes", "features")
PER_REGION = ("boxes", "features", "objects", "distribution")
MAX_CHUNK = 1 << 30
"""Bytes of a piece that the file is compressed in: it is unpacked whole."""
MAX_PICTURE = 64 << 20
"""Bytes of what a picture has in one part of the file."""

Parts = dict[str, Any]
"""Datasets of h5py."""


def read_m3p_hdf5(source: Path, options: ReadOptions) -> Iterator[Stored]:
    """Yield the pictures of a file. Raises UserError where it is none, or h5py is missing."""
    try:
        import h5py
    except ImportError:
        raise UserError(f"{source}: reading HDF5 needs h5py: pip install 'm3p-trainer[hdf5]'") from None
    try:
        file = h5py.File(source, "r")
    except OSError as error:
        raise UserError(f"{source}: not a readable HDF5 file ({error}); copy it again.") from None
    with file:
        try:
            parts = {name: part for name, names in NAMES.items() if (part := _part(source, file, names)) is not None}
            if missing := [" or ".join(NAMES[name]) for name in NEEDED if name not in parts]:
                raise UserError(f"{source} has no {', no '.join(missing)}: want the HDF5 file of M3P's regions.")
            _check(source, parts)
        except UserError:
            raise
        except Exception as error:  # of a damaged file h5py raises nearly anything, from KeyError to RuntimeError
            raise UserError(f"{source}: a damaged HDF5 file ({error}); copy it again.") from None
        for row in range(len(parts["image_id"])):
            yield _picture(parts, row, options)


def _picture(parts: Parts, row: int, options: ReadOptions) -> Stored:
    name = ""
    try:
        name = _name(parts["image_id"][row])
        return Stored(f"row {row}", name, _regions(parts, row, options))
    except Exception as error:  # of a piece that cannot be unpacked h5py raises nearly anything
        return Stored(f"row {row}", name, str(error))


def _part(source: Path, file: Any, names: tuple[str, ...]) -> Any:
    """Return the dataset of one of these names; None if there is none. Raises UserError for one that lies in another file."""
    import h5py

    for name in names:
        link = file.get(name, getlink=True)
        if link is None:
            continue
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{source}: {name} leads elsewhere; the rule is one file that holds all of its parts.")
        part = file[name]
        if not isinstance(part, h5py.Dataset):
            raise UserError(f"{source}: {name} is no array.")
        if part.is_virtual or part.external:
            raise UserError(f"{source}: {name} lies in other files; the rule is one file that holds all of its parts.")
        return part
    return None


def _check(source: Path, parts: Parts) -> None:
    """Raise UserError for arrays of other shapes or types than the format has, or too large ones."""
    count = parts["image_id"].shape[:1]
    dimensions = {"image_id": 1, "wh": 2, "boxes": 3, "features": 3, "objects": 2, "distribution": 3}
    for name, part in parts.items():
        regions = part.shape[1:2] if name in PER_REGION else parts["boxes"].shape[1:2]
        if len(part.shape) != dimensions[name] or part.shape[:1] != count or regions != parts["boxes"].shape[1:2]:
            raise UserError(f"{source}: {part.name} has shape {part.shape}, and image_id {count}: not M3P's regions.")
        if name != "image_id" and part.dtype.kind not in "fiu":
            raise UserError(f"{source}: {part.name} is {part.dtype}; the rule is numbers.")
        chunk = int(np.prod(part.chunks or (0,), dtype=object)) * part.dtype.itemsize
        picture = int(np.prod(part.shape[1:], dtype=object)) * part.dtype.itemsize
        if chunk > MAX_CHUNK or picture > MAX_PICTURE:
            raise UserError(
                f"{source}: {part.name} has {max(chunk, picture):,} bytes a piece; {MAX_CHUNK:,} are the most."
            )
    if parts["image_id"].dtype.kind not in "SO":
        raise UserError(f"{source}: image_id is {parts['image_id'].dtype}; the rule is texts.")
    if parts["boxes"].shape[1] > MAX_REGIONS:
        raise UserError(f"{source}: {parts['boxes'].shape[1]:,} regions a picture; {MAX_REGIONS:,} are the most.")


def _name(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _regions(parts: Parts, row: int, options: ReadOptions) -> Arrays:
    """Return the arrays of a picture. Raises ValueError."""
    read: dict[str, NDArray[Any]] = {name: parts[name][row] for name in PER_REGION if name in parts}
    rows = _without_padding(read["boxes"], read["features"])
    height, width = (
        whole(side, MAX_SIDE, what) for side, what in zip(parts["wh"][row], ("height", "width"), strict=True)
    )
    arrays: Arrays = {
        "boxes": relative_boxes(read["boxes"][:rows], width, height),
        "features": read["features"][:rows].astype(np.float32),
    }
    if "distribution" in read:
        return arrays | likeliest(read["distribution"][:rows].astype(np.float32), options.keep_classes)
    return arrays | (class_numbers(read["objects"][:rows]) if "objects" in read else {})


def _without_padding(boxes: NDArray[Any], features: NDArray[Any]) -> int:
    """Return how many rows come before the padding. Raises ValueError where there are none."""
    used = np.flatnonzero(boxes.any(1) | features.any(1))
    if not len(used):
        raise ValueError("it has no region that is not zero")
    return int(used[-1]) + 1
