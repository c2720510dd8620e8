import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3p.errors import UserError
from m3p.prepare.region_formats.stored import ReadOptions, Stored
from m3p.prepare.region_formats.vinvl import FEATURE_SIZE, read_vinvl

BOXES = np.array([[64, 48, 320, 240], [0, 0, 640, 480]], np.float32)
NAMES = {"cat": 1, "chair": 7}


def features(seed: int) -> Any:
    """Return [2, 2054]: features and, behind them, the boxes as shares of the picture."""
    shares = BOXES / np.array([640, 480, 640, 480], np.float32)
    position = np.concatenate([shares, shares[:, 2:] - shares[:, :2]], 1)
    found = np.random.default_rng(seed).normal(size=(2, FEATURE_SIZE)).astype(np.float32)
    return np.concatenate([found, position.astype(np.float32)], 1)


def predicted(**changes: Any) -> dict[str, Any]:
    objects = [{"class": name, "conf": 0.9, "rect": box.tolist()} for name, box in zip(NAMES, BOXES, strict=True)]
    return {"image_w": 640, "image_h": 480, "objects": objects, **changes}


def write(folder: Path, predictions: list[Any] | None, offsets: bool = True, count: int = 2) -> None:
    lines = []
    for number in range(count):
        content = base64.b64encode(features(number).tobytes()).decode()
        lines.append(f"k{number}\t{json.dumps({'num_boxes': 2, 'features': content})}\n")
    (folder / "features.tsv").write_text("".join(lines))
    if offsets:
        starts = np.cumsum([0, *map(len, lines)])[:-1]
        (folder / "features.lineidx").write_text("".join(f"{start}\n" for start in starts))
    if predictions is not None:
        (folder / "predictions.tsv").write_text("".join(f"{key}\t{json.dumps(one)}\n" for key, one in predictions))


def read(folder: Path, names: dict[str, int] | None = NAMES) -> list[Stored]:
    return list(read_vinvl(folder, ReadOptions(3, names)))


def test_features_and_predictions_belong_together_by_line(tmp_path: Path) -> None:
    write(tmp_path, [("k0", predicted()), ("k1", predicted())])
    for number, found in enumerate(read(tmp_path)):
        assert found.name == f"k{number}"
        assert isinstance(found.regions, dict)
        np.testing.assert_array_equal(found.regions["features"], features(number)[:, :FEATURE_SIZE])
        np.testing.assert_allclose(found.regions["boxes"][0], [0.1, 0.1, 0.5, 0.5], rtol=1e-6)
        assert found.regions["class_ids"].tolist() == [1, 7]
    unnamed = read(tmp_path / "features.tsv", None)[0].regions
    assert isinstance(unnamed, dict)
    assert "class_ids" not in unnamed


def test_without_predictions_the_boxes_are_those_behind_the_features(tmp_path: Path) -> None:
    write(tmp_path, None, offsets=False)
    found = read(tmp_path)[1].regions
    assert isinstance(found, dict)
    np.testing.assert_allclose(found["boxes"], [[0.1, 0.1, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("prediction", "reason"),
    [
        (("k9", predicted()), "features.tsv has 'k0' here and predictions.tsv 'k9'; the rule is one order"),
        (("k0", predicted(objects=[])), "objects are no list of 2 objects"),
        (("k0", predicted(objects=[{"class": "cat", "rect": [1, 2]}] * 2)), r"rect is \[1, 2\]"),
        (("k0", predicted(objects=[{"class": "dog", "rect": [1, 2, 3, 4]}] * 2)), "class 'dog' is not in the file"),
        (("k0", predicted(image_w=None)), "image_w is 'None'"),
        (("k0", []), "no JSON object"),
    ],
)
def test_a_wrong_line_is_told(tmp_path: Path, prediction: Any, reason: str) -> None:
    write(tmp_path, [prediction, ("k1", predicted())])
    bad, good = read(tmp_path)
    assert isinstance(good.regions, dict)
    assert isinstance(bad.regions, str)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.regions)


def test_a_file_that_was_cut_is_found(tmp_path: Path) -> None:
    write(tmp_path, None)
    lines = (tmp_path / "features.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "features.tsv").write_text(lines[0])
    with pytest.raises(UserError, match=r"has 1 lines, but features\.lineidx 2"):
        read(tmp_path)
    (tmp_path / "features.tsv").write_text(" " + "".join(lines))
    with pytest.raises(UserError, match="line 2: does not begin where"):
        read(tmp_path)
    write(tmp_path, [("k0", predicted())])
    with pytest.raises(UserError, match="different numbers of lines"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_w": 10**400}, "image_w is '1000"),
        ({"image_w": float("nan")}, "image_w is 'nan'"),
        ({"objects": [{"class": "cat", "rect": [0, 0, 10**400, 9]}] * 2}, "the rule is four numbers"),
        ({"objects": [{"class": None, "rect": [0, 0, 9, 9]}] * 2}, "class 'None' is not in the file of class names"),
        ({"objects": [{"class": {}, "rect": [0, 0, 9, 9]}] * 2}, "is not in the file of class names"),
    ],
)
def test_numbers_of_any_size_and_classes_of_any_kind_are_named(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    write(tmp_path, [("k0", predicted(**changes)), ("k1", predicted())])
    first, second = read(tmp_path)
    assert says in str(first.regions)
    assert isinstance(second.regions, dict)
