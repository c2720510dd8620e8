import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3p.errors import UserError
from m3p.prepare.region_formats.mmf import read_mmf
from m3p.prepare.region_formats.stored import ReadOptions, Stored

FEATURES = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
BOXES = np.array([[64, 48, 320, 240], [0, 0, 640, 480]], np.float32)
PROBS = np.array([[0.1, 0.6, 0.3, 0.0], [0.25, 0.25, 0.1, 0.4]], np.float32)


def save(folder: Path, name: str, features: Any = FEATURES, **changes: Any) -> None:
    """Write a picture as extract_features_vmb.py does."""
    info = {"bbox": BOXES, "num_boxes": 1, "objects": PROBS.argmax(1), "cls_prob": PROBS, "image_width": 640}
    np.save(folder / f"{name}.npy", features)
    content: Any = {**info, "image_height": 480, **changes}
    kept: Any = {key: value for key, value in content.items() if value is not None}
    np.save(folder / f"{name}_info.npy", kept)


def read(folder: Path) -> list[Stored]:
    return list(read_mmf(folder, ReadOptions(3)))


def test_two_files_are_a_picture_and_its_distribution_is_kept(tmp_path: Path) -> None:
    save(tmp_path, "COCO_1")
    (found,) = read(tmp_path)
    assert found.name == "COCO_1"
    assert isinstance(found.regions, dict)
    np.testing.assert_array_equal(found.regions["features"], FEATURES)  # both regions, whatever num_boxes says
    np.testing.assert_allclose(found.regions["boxes"][0], [0.1, 0.1, 0.5, 0.5], rtol=1e-6)
    assert found.regions["class_ids"].tolist() == [[1, 2, 0], [3, 0, 1]]
    np.testing.assert_allclose(found.regions["class_probs"], [[0.6, 0.3, 0.1], [0.4, 0.25, 0.25]], rtol=1e-6)


def test_without_a_distribution_a_region_has_one_class(tmp_path: Path) -> None:
    save(tmp_path, "a", cls_prob=None)
    (found,) = read(tmp_path)
    assert isinstance(found.regions, dict)
    assert found.regions["class_ids"].tolist() == [1, 3]
    assert "class_probs" not in found.regions


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": Evil()}, "a_info.npy: it names builtins.exec, which is not plain data"),
        ({"bbox": [[1, 2, 3, 4]]}, "bbox is no array of numbers"),
        ({"bbox": None}, "bbox is no array of numbers"),
        ({"image_width": "wide"}, "image_width is 'wide'"),
        ({"image_width": 480, "image_height": 640}, "exchanged"),
        ({"features": np.array(["a"])}, "features is no array of numbers"),
        ({"features": np.array([{}, {}])}, "[Oo]bject"),
        ({"cls_prob": PROBS - 1}, r"outside of 0\.\.1"),
    ],
)
def test_a_wrong_picture_is_told_and_nothing_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, "a", **changes)
    save(tmp_path, "b")
    bad, good = read(tmp_path)
    assert isinstance(good.regions, dict)
    assert isinstance(bad.regions, str)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.regions)
    assert not (tmp_path / "ran").exists()


def test_files_without_their_other_half_or_of_another_size_are_told(tmp_path: Path) -> None:
    save(tmp_path, "a")
    (tmp_path / "a.npy").unlink()
    np.save(tmp_path / "b.npy", FEATURES)
    save(tmp_path, "c")
    content = (tmp_path / "c.npy").read_bytes()
    (tmp_path / "c.npy").write_bytes(content.replace(b"(2, 5)", b"(9, 9)"))
    (tmp_path / "d_info.npy").write_bytes(pickle.dumps({}))
    (tmp_path / "d.npy").write_bytes((tmp_path / "b.npy").read_bytes())
    said = {one.name: one.regions for one in read(tmp_path)}
    assert said["a"] == "it has no file of features beside it"
    assert said["b"] == "b_info.npy does not exist"
    assert isinstance(said["c"], str)
    assert isinstance(said["d"], str)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.npy file"):
        read(tmp_path)
