"""VinVL's files (arXiv 2101.00529): features.tsv and predictions.tsv, a picture a line, its key and an object of JSON.

features.tsv      {"num_boxes": R, "features": base64 of float32 [R, 2054]}: 2,048 numbers, then x1, y1, x2, y2, width and height
                  as shares of the picture, which are left out of the feature here
predictions.tsv   {"image_w", "image_h", "objects": [{"class", "conf", "rect": [x1, y1, x2, y2] in pixels}, ...]}

Line n of one belongs to line n of the other. Without predictions.tsv the boxes are those behind the features, and there are no
classes. features.lineidx, where it is there, has the offset of each line: it shows a file that was cut.
"""

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from m3p.errors import UserError
from m3p.prepare.lines import numbered_lines
from m3p.prepare.region_formats.stored import (
    MAX_REGIONS,
    MAX_SIDE,
    ReadOptions,
    Stored,
    relative_boxes,
    unpack,
    whole,
)
from m3p.prepare.regions import Arrays

FEATURES, PREDICTIONS, OFFSETS = "features.tsv", "predictions.tsv", "features.lineidx"
FEATURE_SIZE, POSITION_SIZE = 2048, 6
"""Numbers of a feature, and of the position that VinVL stores behind it."""
FARTHEST = 1e9
"""Pixels. A number of a box beyond this is none; Python reads numbers of any size."""

Fields = dict[str, Any]


def read_vinvl(source: Path, options: ReadOptions) -> Iterator[Stored]:
    """Yield the pictures of a folder, or of features.tsv and what lies beside it. Raises UserError for a file that was cut."""
    folder = source if source.is_dir() else source.parent
    features = folder / FEATURES if source.is_dir() else source
    if not features.is_file():
        raise UserError(f"{features} does not exist: give the folder that holds {FEATURES}.")
    predictions = folder / PREDICTIONS
    others: Iterator[tuple[int, bytes]] = numbered_lines(predictions) if predictions.is_file() else iter(())
    offsets = _offsets(folder / OFFSETS)
    at = count = 0
    for one, other in zip_longest(numbered_lines(features), others):
        if one is None or (other is None and predictions.is_file()):
            raise UserError(f"{predictions} and {features} have different numbers of lines; copy both again.")
        number, line = one
        if offsets is not None and (count >= len(offsets) or offsets[count] != at):
            raise UserError(f"{features}, line {number}: does not begin where {OFFSETS} says; copy both again.")
        at, count = at + len(line), count + 1
        yield _picture(f"line {number}", line, None if other is None else other[1], options)
    if offsets is not None and count != len(offsets):
        raise UserError(f"{features} has {count:,} lines, but {OFFSETS} {len(offsets):,}: it was cut; copy it again.")


def _offsets(path: Path) -> list[int] | None:
    """Return the offsets of the lines of features.tsv; None where they are not there. Raises UserError."""
    if not path.is_file():
        return None
    try:
        return [whole(line, 1 << 60, "an offset") if line.strip() != b"0" else 0 for _, line in numbered_lines(path)]
    except ValueError as error:
        raise UserError(f"{path}: {error}; delete it, or copy it again.") from None


def _picture(where: str, line: bytes, other: bytes | None, options: ReadOptions) -> Stored:
    key, found = _row(line)
    try:
        if isinstance(found, str):
            raise ValueError(f"{FEATURES}: {found}")
        rows = whole(found.get("num_boxes"), MAX_REGIONS, "num_boxes")
        features = unpack(_text(found.get("features")), "<f4", rows, "features")
        positions = features[:, FEATURE_SIZE:] if features.shape[1] == FEATURE_SIZE + POSITION_SIZE else None
        kept = features if positions is None else features[:, :FEATURE_SIZE]
        if other is not None:
            return Stored(where, key, {"features": kept, **_predicted(key, other, rows, options)})
        if positions is None:
            raise ValueError(
                f"features of {features.shape[1]} numbers hold no boxes; {PREDICTIONS} is needed beside them"
            )
        return Stored(where, key, {"features": kept, "boxes": relative_boxes(positions[:, :4], 1, 1)})
    except ValueError as error:
        return Stored(where, key, str(error))


def _predicted(key: str, line: bytes, rows: int, options: ReadOptions) -> Arrays:
    """Return boxes, and classes where their numbers are known, of a line of predictions.tsv. Raises ValueError."""
    other, found = _row(line)
    if isinstance(found, str):
        raise ValueError(f"{PREDICTIONS}: {found}")
    if other != key:
        raise ValueError(f"{FEATURES} has {key!r} here and {PREDICTIONS} {other!r}; the rule is one order")
    objects = found.get("objects")
    if not isinstance(objects, list) or len(objects) != rows or not all(isinstance(one, dict) for one in objects):
        raise ValueError(f"{PREDICTIONS}: objects are no list of {rows} objects, as many as there are features")
    width, height = (whole(found.get(name), MAX_SIDE, name) for name in ("image_w", "image_h"))
    boxes = relative_boxes(_rectangles(objects), width, height)
    if options.class_names is None:
        return {"boxes": boxes}
    if unknown := [_class(one) for one in objects if _class(one) not in options.class_names]:
        raise ValueError(f"{PREDICTIONS}: class {unknown[0][:40]!r} is not in the file of class names")
    return {"boxes": boxes, "class_ids": np.array([options.class_names[_class(one)] for one in objects])}


def _class(one: Fields) -> str:
    return str(one.get("class"))


def _rectangles(objects: list[Fields]) -> Any:
    """Return the boxes [R, 4] of the objects. Raises ValueError."""
    found = [one.get("rect") for one in objects]
    for box in found:
        numbers = (
            isinstance(box, list)
            and len(box) == 4
            and all(type(number) in (int, float) and abs(number) < FARTHEST for number in box)
        )
        if not numbers:
            raise ValueError(f"{PREDICTIONS}: rect is {str(box)[:40]}; the rule is four numbers")
    return np.array(found, np.float64)


def _row(line: bytes) -> tuple[str, Fields | str]:
    """Return key and object of a line, or what is wrong with it."""
    key, tab, rest = line.rstrip(b"\r\n").partition(b"\t")
    name = key.decode("utf-8", "replace")
    if not tab:
        return name, "a line without a tab"
    try:
        found = json.loads(rest)
    except (ValueError, RecursionError) as error:
        return name, f"broken JSON ({error})"
    return name, found if isinstance(found, dict) else "no JSON object"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"features are {type(value).__name__}; the rule is text in base64")
    return value
