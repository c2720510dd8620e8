"""Files of MMF's extract_features_vmb.py, which M3P's own regions come from: NAME.npy and NAME_info.npy a picture.

NAME.npy are features [R, D]. NAME_info.npy is a pickled dict: bbox [R, 4] in pixels, image_width, image_height, and objects [R],
cls_prob [R, C] or both. It is read as data, never executed (plain_pickle.py). All R regions are kept, whatever num_boxes says:
it counts those that the detector is sure of, and the others are regions too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3p.errors import UserError
from m3p.prepare.region_formats.plain_pickle import load_plain
from m3p.prepare.region_formats.stored import (
    MAX_SIDE,
    ReadOptions,
    Stored,
    class_numbers,
    likeliest,
    relative_boxes,
    whole,
)
from m3p.prepare.regions import Arrays
from m3p.visual.npz import LARGEST_NPZ, read_npy, split_npy

INFO = "_info.npy"


def read_mmf(source: Path, options: ReadOptions) -> Iterator[Stored]:
    """Yield the pictures of a folder. Raises UserError where it holds none."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: give the folder that holds NAME.npy and NAME{INFO}.")
    found = False
    for path in sorted(source.glob("*.npy")):
        found = True
        if path.name.endswith(INFO):
            if not path.with_name(path.name.removesuffix(INFO) + ".npy").is_file():
                yield Stored(path.name, path.name.removesuffix(INFO), "it has no file of features beside it")
            continue
        try:
            yield Stored(path.name, path.stem, _regions(path, options))
        except Exception as error:  # on broken bytes numpy's parsers raise nearly anything, from KeyError to TokenError
            yield Stored(path.name, path.stem, str(error))
    if not found:
        raise UserError(f"{source} holds no .npy file: give the folder that holds NAME.npy and NAME{INFO}.")


def _regions(path: Path, options: ReadOptions) -> Arrays:
    """Return the arrays of a picture. Raises ValueError."""
    features = _numbers(read_npy(_content(path)), "features")
    info = _info(path.with_name(path.stem + INFO))
    width, height = (whole(info.get(name), MAX_SIDE, name) for name in ("image_width", "image_height"))
    boxes = relative_boxes(_numbers(info.get("bbox"), "bbox"), width, height)
    arrays: Arrays = {"boxes": boxes, "features": features.astype(np.float32)}
    if info.get("cls_prob") is not None:
        return arrays | likeliest(_numbers(info["cls_prob"], "cls_prob"), options.keep_classes)
    return arrays | (class_numbers(_numbers(info["objects"], "objects")) if "objects" in info else {})


def _info(path: Path) -> dict[str, Any]:
    """Return what a NAME_info.npy holds. Raises ValueError."""
    content = _content(path)
    try:
        shape, kind, rest = split_npy(content)
        if not kind.hasobject or shape != ():
            raise ValueError(f"an array of {kind} {shape}; the rule is one dict")
        info = load_plain(bytes(rest))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    if not isinstance(info, dict):
        raise ValueError(f"{path.name}: holds a {type(info).__name__}; the rule is a dict")
    return info


def _content(path: Path) -> bytes:
    """Return the bytes of a regular file of bounded size. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"{path.name} {'is no regular file' if path.exists() else 'does not exist'}")
    with path.open("rb") as file:
        content = file.read(LARGEST_NPZ + 1)
    if len(content) > LARGEST_NPZ:
        raise ValueError(f"{path.name} has more than {LARGEST_NPZ:,} bytes")
    return content


def _numbers(value: object, what: str) -> NDArray[Any]:
    """Return an array of numbers. Raises ValueError for anything else."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise ValueError(f"{what} is no array of numbers")
    return value
