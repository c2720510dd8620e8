"""Tab-separated files of bottom-up attention (arXiv 1707.07998) and LXMERT: a picture a line, arrays in base64.

bottom-up  image_id, image_w, image_h, num_boxes, boxes, features
LXMERT     img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features

A first line that names the columns is followed, so that they may stand in any order. Boxes are float32 in pixels, features
float32, objects_id int64. Attributes are not kept.
"""

from collections.abc import Iterator
from pathlib import Path

from m3p.errors import UserError
from m3p.prepare.lines import numbered_lines
from m3p.prepare.region_formats.stored import (
    MAX_REGIONS,
    MAX_SIDE,
    ReadOptions,
    Stored,
    class_numbers,
    relative_boxes,
    unpack,
    whole,
)
from m3p.prepare.regions import Arrays

COLUMNS = {
    6: ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    10: (
        "img_id",
        "img_h",
        "img_w",
        "objects_id",
        "objects_conf",
        "attrs_id",
        "attrs_conf",
        "num_boxes",
        "boxes",
        "features",
    ),
}
"""Columns by their number."""
_SAME = {"img_id": "image_id", "img_w": "image_w", "img_h": "image_h", "classes": "objects_id"}
"""Other names of columns."""
_NEEDED = {"image_id", "image_w", "image_h", "num_boxes", "boxes", "features"}


def read_bottom_up(source: Path, options: ReadOptions) -> Iterator[Stored]:
    """Yield the pictures of a file. Raises UserError where its columns are unknown."""
    names: tuple[str, ...] | None = None
    for number, line in numbered_lines(source):
        values = line.rstrip(b"\r\n").split(b"\t")
        if values == [b""]:
            continue
        if names is None:
            header = tuple(value.decode("ascii", "replace") for value in values)
            named = "num_boxes" in header
            names = header if named else COLUMNS.get(len(values), ())
            names = tuple(_SAME.get(name, name) for name in names)
            if missing := _NEEDED - set(names):
                raise UserError(
                    f"{source}: a line of {len(values)} columns without {', '.join(sorted(missing))}; the rule is 6 columns "
                    "(bottom-up attention), 10 (LXMERT), or a first line that names them."
                )
            if named:
                continue
        where = f"line {number}"
        if len(values) != len(names):
            yield Stored(where, "", f"{len(values)} columns; the rule is {len(names)}: {', '.join(names)}")
            continue
        row = dict(zip(names, values, strict=True))
        name = row["image_id"].decode("utf-8", "replace")
        try:
            yield Stored(where, name, _regions(row))
        except ValueError as error:
            yield Stored(where, name, str(error))


def _regions(row: dict[str, bytes]) -> Arrays:
    """Return the arrays of a line. Raises ValueError."""
    rows = whole(row["num_boxes"], MAX_REGIONS, "num_boxes")
    width, height = (whole(row[name], MAX_SIDE, name) for name in ("image_w", "image_h"))
    boxes = relative_boxes(unpack(row["boxes"], "<f4", rows, "boxes"), width, height)
    classes = class_numbers(unpack(row["objects_id"], "<i8", rows, "objects_id")) if "objects_id" in row else {}
    return {"boxes": boxes, "features": unpack(row["features"], "<f4", rows, "features"), **classes}
