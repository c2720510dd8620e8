"""Check a picture's stored region features, and pack them the way that shards hold them."""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
NAMES = ("boxes", "features", "class_ids", "class_probs")
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def load_regions(path: Path) -> Arrays:
    """Read boxes [R, 4] in 0..1, features [R, D], class_ids [R] or [R, K] and class_probs [R] or [R, K].

    Returned in the types of shards: float32, float16, int32, float16. Raises ValueError with the reason.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            missing = [name for name in NAMES if name not in content]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
            arrays: Arrays = {name: content[name] for name in NAMES}
    except FileNotFoundError:
        raise ValueError("it does not exist") from None
    except UNREADABLE as error:
        raise ValueError(f"it cannot be used: {error}") from None
    _check_shapes(arrays)
    _check_values(arrays)
    types = {"boxes": np.float32, "features": np.float16, "class_ids": np.int32, "class_probs": np.float16}
    with np.errstate(over="ignore"):
        cast: Arrays = {name: array.astype(types[name]) for name, array in arrays.items()}
    if not np.isfinite(cast["features"]).all():
        raise ValueError("features are too large for float16 (65,504)")
    return cast


def pack_regions(arrays: Arrays) -> bytes:
    """Return the bytes of an uncompressed npz, the same for the same arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _check_shapes(arrays: Arrays) -> None:
    boxes, features, ids, probs = (arrays[name] for name in NAMES)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features have shape {features.shape}; the rule is [R, D], not empty")
    count = len(features)
    if boxes.shape != (count, 4):
        raise ValueError(f"boxes have shape {boxes.shape}; the rule is [{count}, 4], one for each of the features")
    if ids.ndim not in (1, 2) or len(ids) != count:
        raise ValueError(f"class_ids have shape {ids.shape}; the rule is [{count}] or [{count}, K]")
    if probs.shape != ids.shape:
        raise ValueError(f"class_probs have shape {probs.shape}; the rule is that of class_ids, {ids.shape}")


def _check_values(arrays: Arrays) -> None:
    ids = arrays["class_ids"]
    if ids.dtype.kind not in "iu" or ids.min(initial=0) < 0 or ids.max(initial=0) > np.iinfo(np.int32).max:
        raise ValueError(f"class_ids are {ids.dtype}; the rule is whole numbers from 0 to 2,147,483,647")
    for name in ("boxes", "features", "class_probs"):
        array = arrays[name]
        if array.dtype.kind != "f":
            raise ValueError(f"{name} are {array.dtype}; the rule is floating point")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} hold NaN or infinity")
    # Detectors round: a box may stick out by a little.
    for name, slack in (("boxes", 1e-3), ("class_probs", 1e-2)):
        low, high = float(arrays[name].min(initial=0)), float(arrays[name].max(initial=0))
        if low < -slack or high > 1 + slack:
            raise ValueError(f"{name} run from {low:.3g} to {high:.3g}; the rule is 0..1")
