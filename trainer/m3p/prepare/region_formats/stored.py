"""What all readers of published region features share: pixel boxes to shares of the picture, and classes to the likeliest few."""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3p.prepare.regions import Arrays, check_are_pixels
from m3p.visual.regions import BOX_SLACK

MAX_SIDE = 1_000_000
"""Pixels of a picture's side."""
MAX_REGIONS = 4096
"""Regions of a picture."""


class Stored(NamedTuple):
    """The regions of a picture as a file has them."""

    where: str
    """Where they stand, for messages: "line 3"."""
    name: str
    """What the file calls the picture: an id, or the name of its file."""
    regions: Arrays | str
    """Arrays of regions.npz, or why they cannot be used."""


@dataclass(frozen=True)
class ReadOptions:
    """What every reader is told."""

    keep_classes: int
    """Classes of a region that are kept of a whole distribution: the likeliest ones."""
    class_names: dict[str, int] | None = None
    """Name of a class to its number, for formats that name classes."""


def relative_boxes(boxes: NDArray[Any], width: float, height: float) -> NDArray[np.float32]:
    """Return boxes [R, 4] of x1, y1, x2, y2 in pixels as shares of the picture's width and height.

    Raises ValueError for sizes of no picture, for boxes that lie outside of it, and for boxes that are shares already.
    """
    for side in (width, height):
        if not 1 <= side <= MAX_SIDE:
            raise ValueError(f"a picture of {width} x {height} pixels")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not 1 <= len(boxes) <= MAX_REGIONS:
        raise ValueError(f"boxes have shape {boxes.shape}; the rule is [R, 4], up to {MAX_REGIONS:,} regions")
    check_are_pixels(boxes, width, height)
    shares = np.asarray(boxes, np.float64) / [width, height, width, height]
    if not np.isfinite(shares).all() or shares.min() < -BOX_SLACK or shares.max() > 1 + BOX_SLACK:
        largest = np.asarray(boxes, np.float64).reshape(-1, 2).max(0)
        raise ValueError(
            f"boxes reach to {largest[0]:.6g}, {largest[1]:.6g} in a picture of {width:.6g} x {height:.6g} pixels; the rule is "
            "x1, y1, x2, y2 in pixels: are width and height exchanged?"
        )
    return shares.clip(0, 1).astype(np.float32)


def likeliest(distribution: NDArray[Any], keep: int) -> Arrays:
    """Return class_ids and class_probs [R, K] of the likeliest classes, of a distribution [R, C]. Raises ValueError."""
    if distribution.ndim != 2 or distribution.dtype.kind != "f" or not distribution.shape[1]:
        raise ValueError(
            f"a distribution over classes of {distribution.dtype} {distribution.shape}; the rule is floats [R, C]"
        )
    if not (
        np.isfinite(distribution).all() and distribution.min(initial=0) >= 0 and distribution.max(initial=0) <= 1 + 1e-3
    ):
        raise ValueError("a distribution over classes with numbers outside of 0..1")
    ids = np.argsort(-distribution, axis=1, kind="stable")[:, :keep]
    probs = np.take_along_axis(distribution, ids, 1).clip(0, 1)
    return {"class_ids": ids.astype(np.int32), "class_probs": probs.astype(np.float32)}


def unpack(text: bytes | str, kind: str, rows: int, what: str) -> NDArray[Any]:
    """Return base64 text as an array [rows, N] of `kind`, such as "<f4". Raises ValueError for what is no such array."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{what}: not base64 ({error})") from None
    size = np.dtype(kind).itemsize
    if not content or len(content) % (rows * size):
        raise ValueError(f"{what}: {len(content):,} bytes are no {rows} rows of {kind[1:]}")
    return np.frombuffer(content, kind).reshape(rows, -1)


def whole(value: object, limit: int, what: str) -> int:
    """Return a whole number from 1 to `limit`, of a number or of its digits. Raises ValueError."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if isinstance(value, str):
        number = int(value) if value.strip().isdecimal() and len(value) < 12 else -1
    else:
        given = value if isinstance(value, int | float | np.integer | np.floating) else -1
        number = int(given) if given == np.floor(given) and given <= limit else -1
    if not 1 <= number <= limit:
        raise ValueError(f"{what} is {str(value)[:30]!r}; the rule is a whole number from 1 to {limit:,}")
    return number


def class_numbers(values: NDArray[Any]) -> Arrays:
    """Return class_ids [R] of one class a region, such as numbers that are stored as floats. Raises ValueError."""
    values = values.reshape(-1)
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all() or (values != np.floor(values)).any():
        raise ValueError("classes are no whole numbers")
    return {"class_ids": values.astype(np.int64)}


def stem(name: str) -> str:
    """Return the name of a picture's file without folders and extension; a name that is no file's stays."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return Path(last).stem if Path(last).suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") else last
