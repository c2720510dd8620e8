"""Check a picture's stored region features, and pack them the way that shards hold them."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3p.visual.npz import LARGEST_NPZ, read_npz
from m3p.visual.regions import BOX_SLACK, ENDS_BEFORE, ends_before_it_begins

Arrays = dict[str, NDArray[Any]]
TYPES = {"boxes": np.float32, "features": np.float16, "class_ids": np.int32, "class_probs": np.float16}
"""The arrays of a regions.npz, as shards hold them; classes may be left out."""
OTHER_NAMES = {"boxes": ("bbox", "norm_bb"), "class_ids": ("objects",)}
"""What MMF (bbox, objects) and UNITER (norm_bb: x1, y1, x2, y2, width and height, all as shares) call them."""
DISTRIBUTIONS = ("cls_prob", "soft_labels")
"""What MMF and UNITER call a distribution over all classes, [R, C]."""
KEPT_CLASSES = 10
"""Classes of a region that are kept of a distribution: the likeliest ones."""


def load_regions(path: Path) -> Arrays:
    """Read boxes [R, 4] in 0..1, features [R, D] and, if there, class_ids [R] or [R, K] with class_probs alike.

    Names of MMF and UNITER are taken too; boxes are in pixels where image_width and image_height stand beside them. Returned in
    the types of shards. Raises ValueError with the reason.
    """
    try:
        if not path.is_file() and path.exists():
            raise ValueError("it is no regular file")
        with path.open("rb") as file:
            content = read_npz(file.read(LARGEST_NPZ + 1))
        arrays = _named(content)
    except FileNotFoundError:
        raise ValueError("it does not exist") from None
    except Exception as error:  # on broken bytes its parsers raise nearly anything, from KeyError to TokenError
        raise ValueError(f"it cannot be used: {error}") from None
    return check_regions(arrays)


def _named(content: Mapping[str, Any]) -> Arrays:
    """Return the arrays of an npz under our names. Raises nearly anything where they are broken."""
    arrays: Arrays = {name: content[name] for name in TYPES if name in content}
    for name, others in OTHER_NAMES.items():
        if (found := next((other for other in others if other in content), None)) and name not in arrays:
            arrays[name] = content[found][:, :4] if name == "boxes" else content[found].astype(np.int64)
    sides = [content[name] for name in ("image_width", "image_height") if name in content]
    if len(sides) == 2 and ("boxes" in content or "bbox" in content):
        width, height = np.array(sides, np.float64).reshape(2).tolist()
        check_are_pixels(arrays["boxes"], width, height)
        arrays["boxes"] = (arrays["boxes"] / [width, height, width, height]).astype(np.float32)
    distribution = next((content[name] for name in DISTRIBUTIONS if name in content), None)
    if distribution is not None and "class_probs" not in arrays:
        ids = np.argsort(-distribution.astype(np.float32), axis=1, kind="stable")[:, :KEPT_CLASSES]
        arrays |= {"class_ids": ids, "class_probs": np.take_along_axis(distribution, ids, 1)}
    return arrays


def check_are_pixels(boxes: NDArray[Any], width: float, height: float) -> None:
    """Raise ValueError where boxes in pixels all lie in the first pixel of a picture: they are shares of it already."""
    if min(width, height) > 2 and 0 < np.max(boxes, initial=0) <= 1 + BOX_SLACK:
        raise ValueError(
            f"boxes reach to {np.max(boxes):.3g} in a picture of {width:.6g} x {height:.6g} pixels: they are shares of it "
            "already, and the rule is pixels; multiply them by width and height"
        )


def check_regions(arrays: Arrays) -> Arrays:
    """Return the regions of a picture in the types of shards. Raises ValueError with what is wrong with them."""
    missing = [name for name in ("boxes", "features") if name not in arrays]
    if missing:
        raise ValueError(f"it has no array {' and no array '.join(missing)}")
    _check_shapes(arrays)
    _check_values(arrays)
    with np.errstate(over="ignore"):
        cast: Arrays = {name: array.astype(TYPES[name]) for name, array in arrays.items()}
    if not np.isfinite(cast["features"]).all():
        raise ValueError("features are too large for float16 (65,504)")
    return cast


def pack_regions(arrays: Arrays) -> bytes:
    """Return the bytes of an uncompressed npz, the same for the same arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _check_shapes(arrays: Arrays) -> None:
    boxes, features, ids, probs = (arrays.get(name) for name in TYPES)
    assert boxes is not None
    assert features is not None
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features have shape {features.shape}; the rule is [R, D], not empty")
    count = len(features)
    if boxes.shape != (count, 4):
        raise ValueError(f"boxes have shape {boxes.shape}; the rule is [{count}, 4], one for each of the features")
    if ids is not None and (ids.ndim not in (1, 2) or len(ids) != count):
        raise ValueError(f"class_ids have shape {ids.shape}; the rule is [{count}] or [{count}, K]")
    if probs is not None and (ids is None or probs.shape != ids.shape):
        rule = "class_ids must be there too" if ids is None else f"that of class_ids, {ids.shape}"
        raise ValueError(f"class_probs have shape {probs.shape}; the rule is {rule}")


def _check_values(arrays: Arrays) -> None:
    ids = arrays.get("class_ids", np.zeros(1, np.int32))
    if ids.dtype.kind not in "iu" or ids.min(initial=0) < 0 or ids.max(initial=0) > np.iinfo(np.int32).max:
        raise ValueError(f"class_ids are {ids.dtype}; the rule is whole numbers from 0 to 2,147,483,647")
    for name, array in arrays.items():
        if name == "class_ids":
            continue
        if array.dtype.kind != "f":
            raise ValueError(f"{name} are {array.dtype}; the rule is floating point")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} hold NaN or infinity")
        low, high = float(array.min(initial=0)), float(array.max(initial=0))
        if name != "features" and (low < -BOX_SLACK or high > 1 + BOX_SLACK):
            raise ValueError(f"{name} run from {low:.3g} to {high:.3g}; the rule is 0..1")
    if ends_before_it_begins(arrays["boxes"]):
        raise ValueError(f"boxes {ENDS_BEFORE}")
