from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3p.prepare.region_formats.stored import relative_boxes
from m3p.prepare.regions import load_regions

ENDS = "boxes end before they begin: want x1, y1, x2, y2"
SHARES = "they are shares of it already, and the rule is pixels"


def stored(path: Path, **arrays: Any) -> Path:
    """Write an npz of one region's feature and what else is given."""
    np.savez(path, features=np.ones((1, 4), np.float32), **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"boxes": [[0.5, 0.1, 0.3, 0.3]]}, ENDS),
        ({"bbox": [[320.0, 10, 200, 200]], "image_width": 640, "image_height": 480}, ENDS),
        ({"bbox": [[0.1, 0.2, 0.5, 1.0]], "image_width": 640, "image_height": 480}, SHARES),
        ({"norm_bb": [[0.6, 0.7, 0.2, 0.2, 0.2, 0.2]]}, ENDS),
    ],
)
def test_boxes_of_other_conventions_are_no_corners_in_shares(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    given = {name: np.array(value, np.float32) for name, value in arrays.items()}
    with pytest.raises(ValueError, match=message):
        load_regions(stored(tmp_path / "one.npz", **given))


def test_boxes_that_are_shares_by_name_are_never_divided(tmp_path: Path) -> None:
    norm_bb = np.array([[0.1, 0.2, 0.5, 1.0, 0.4, 0.8]], np.float32)
    path = stored(tmp_path / "one.npz", norm_bb=norm_bb, image_width=640, image_height=480)
    np.testing.assert_array_equal(load_regions(path)["boxes"], norm_bb[:, :4])


def test_rounding_and_empty_boxes_are_taken(tmp_path: Path) -> None:
    boxes = np.array([[0.5, 0.5, 0.4999, 0.4999]], np.float32)
    np.testing.assert_array_equal(load_regions(stored(tmp_path / "one.npz", boxes=boxes))["boxes"], boxes)
    assert not relative_boxes(np.zeros((1, 4), np.float32), 640, 480).any()


def test_boxes_of_a_file_in_pixels_that_are_shares_are_not_divided_again() -> None:
    boxes = np.array([[0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1]])
    with pytest.raises(ValueError, match=SHARES):
        relative_boxes(boxes, 640, 480)
    np.testing.assert_allclose(relative_boxes(boxes, 1, 1), boxes)
