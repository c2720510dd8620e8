import base64
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3p.errors import UserError
from m3p.prepare.region_formats.bottom_up import read_bottom_up
from m3p.prepare.region_formats.stored import ReadOptions, Stored

OPTIONS = ReadOptions(3)
RNG = np.random.default_rng(0)
BOXES = np.array([[64, 48, 320, 240], [0, 0, 640, 480]], np.float32)
FEATURES = RNG.normal(size=(2, 5)).astype(np.float32)


def packed(array: Any) -> str:
    return base64.b64encode(array.tobytes()).decode()


def row(**changes: Any) -> str:
    """A line of bottom-up attention's generate_tsv.py."""
    fields = {"image_id": 391895, "image_w": 640, "image_h": 480, "num_boxes": 2, "boxes": packed(BOXES)}
    return "\t".join(str(value) for value in {**fields, "features": packed(FEATURES), **changes}.values())


def read(path: Path) -> list[Stored]:
    return list(read_bottom_up(path, OPTIONS))


def written(tmp_path: Path, *lines: str) -> list[Stored]:
    (tmp_path / "all.tsv").write_text("\n".join(lines) + "\n")
    return read(tmp_path / "all.tsv")


def test_a_line_is_a_picture(tmp_path: Path) -> None:
    (found,) = written(tmp_path, row())
    assert (found.where, found.name) == ("line 1", "391895")
    assert isinstance(found.regions, dict)
    np.testing.assert_allclose(found.regions["boxes"], [[0.1, 0.1, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]], rtol=1e-6)
    np.testing.assert_array_equal(found.regions["features"], FEATURES)
    assert "class_ids" not in found.regions


def test_lxmerts_columns_have_height_before_width_and_classes(tmp_path: Path) -> None:
    ids, half = np.array([7, 1599]), np.array([0.5, 0.25], np.float32)
    values = ["COCO_val2014_000000391895", 480, 640, packed(ids), packed(half), packed(ids), packed(half), 2]
    line = "\t".join(map(str, [*values, packed(BOXES), packed(FEATURES)]))
    with gzip.open(tmp_path / "all.tsv.gz", "wt") as file:
        file.write(line + "\n")
    (found,) = read(tmp_path / "all.tsv.gz")
    assert found.name == "COCO_val2014_000000391895"
    assert isinstance(found.regions, dict)
    np.testing.assert_allclose(found.regions["boxes"][0], [0.1, 0.1, 0.5, 0.5], rtol=1e-6)
    assert found.regions["class_ids"].tolist() == [7, 1599]


def test_a_first_line_names_the_columns(tmp_path: Path) -> None:
    names = "features\timage_h\timage_w\timage_id\tnum_boxes\tboxes"
    line = "\t".join([packed(FEATURES), "480", "640", "x", "2", packed(BOXES)])
    (found,) = written(tmp_path, names, line)
    assert found.where == "line 2"
    assert isinstance(found.regions, dict)
    np.testing.assert_array_equal(found.regions["features"], FEATURES)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (row(image_w=480, image_h=640), "reach to 640, 480 in a picture of 480 x 640 .*exchanged"),
        (row(num_boxes=3), "boxes: 32 bytes are no 3 rows"),
        (row(num_boxes="many"), "num_boxes is 'many'; the rule is a whole number"),
        (row(num_boxes=10**9), "num_boxes is '1000000000'"),
        (row(image_w=0), "image_w is '0'"),
        (row(boxes="!!"), "boxes: not base64"),
        (row(features=""), "features: 0 bytes"),
        (row(boxes=packed(BOXES * np.nan)), "boxes reach to nan"),
        ("a\tb", "2 columns; the rule is 6"),
    ],
)
def test_a_wrong_line_is_told_and_the_others_are_read(tmp_path: Path, line: str, reason: str) -> None:
    good, bad = written(tmp_path, row(), line)
    assert isinstance(good.regions, dict)
    assert isinstance(bad.regions, str)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.regions)


def test_unknown_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a line of 3 columns without boxes, features"):
        written(tmp_path, "a\tb\tc")
