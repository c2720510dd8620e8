import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from m3p.errors import UserError
from m3p.prepare.region_formats.m3p_hdf5 import read_m3p_hdf5
from m3p.prepare.region_formats.stored import ReadOptions, Stored

REGIONS, USED, WIDTH = 6, 4, 5
RNG = np.random.default_rng(0)
NAMES = np.array([b"000000391895.jpg", b"b.jpg"])


def arrays(**changes: Any) -> dict[str, Any]:
    """Return two pictures of 640 x 480 with padding behind their regions."""
    boxes, features = np.zeros((2, REGIONS, 4), np.float32), np.zeros((2, REGIONS, WIDTH), np.float16)
    boxes[:, :USED] = [64, 48, 320, 240]
    features[:, :USED] = RNG.normal(size=(2, USED, WIDTH))
    found = {
        "image_id": NAMES,
        "wh": np.array([[480, 640]] * 2),  # M3P's name and order
        "num_boxes": np.array([3, 3]),
        "bbox": boxes,
        "features": features,
        "objects": np.tile(np.arange(REGIONS), (2, 1)),
        **changes,
    }
    return {name: array for name, array in found.items() if array is not None}


def write(path: Path, **changes: Any) -> dict[str, Any]:
    content = arrays(**changes)
    with h5py.File(path, "w") as file:
        for name, array in content.items():
            file[name] = array
    return content


def read(path: Path) -> list[Stored]:
    return list(read_m3p_hdf5(path, ReadOptions(3)))


def test_every_row_is_a_picture_without_its_padding(tmp_path: Path) -> None:
    content = write(tmp_path / "val.h5")
    for number, found in enumerate(read(tmp_path / "val.h5")):
        assert found.name == NAMES[number].decode()
        assert isinstance(found.regions, dict)
        np.testing.assert_array_equal(found.regions["features"], content["features"][number, :USED])
        np.testing.assert_allclose(found.regions["boxes"], [[0.1, 0.1, 0.5, 0.5]] * USED, rtol=1e-6)
        assert found.regions["class_ids"].tolist() == list(range(USED))


def test_the_older_names_and_distributions_are_known(tmp_path: Path) -> None:
    distribution = RNG.dirichlet(np.ones(8), (2, REGIONS)).astype(np.float16)
    content = arrays()
    older = {"boxes": content["bbox"], "bbox": None, "objects": None, "distribution": distribution}
    write(tmp_path / "old.h5", **older)
    found = read(tmp_path / "old.h5")[0].regions
    assert isinstance(found, dict)
    assert found["class_ids"].shape == found["class_probs"].shape == (USED, 3)
    np.testing.assert_array_equal(found["class_ids"][:, 0], distribution[0, :USED].argmax(1))
    texts = np.array([name.decode() for name in NAMES], dtype=h5py.string_dtype())
    write(tmp_path / "texts.h5", image_id=texts)
    assert read(tmp_path / "texts.h5")[1].name == "b.jpg"


def test_wrong_rows_are_told(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", wh=np.array([[640, 240], [480, 640]]))
    bad, good = read(tmp_path / "a.h5")
    assert isinstance(good.regions, dict)
    assert isinstance(bad.regions, str)
    assert "are width and height exchanged" in bad.regions
    write(tmp_path / "b.h5", bbox=np.zeros((2, REGIONS, 4)), features=np.zeros((2, REGIONS, WIDTH)))
    assert read(tmp_path / "b.h5")[0].regions == "it has no region that is not zero"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": None}, "has no features"),
        ({"bbox": None}, "has no bbox or boxes"),
        ({"features": np.zeros((2, 3, WIDTH))}, r"features has shape \(2, 3, 5\)"),
        ({"wh": np.zeros((1, 2))}, r"wh has shape \(1, 2\)"),
        ({"bbox": np.full((2, REGIONS, 4), b"x")}, "the rule is numbers"),
        ({"image_id": np.arange(2)}, "the rule is texts"),
        ({"image_id": h5py.SoftLink("/wh")}, "image_id leads elsewhere"),
        ({"wh": h5py.ExternalLink("other.h5", "/wh")}, "wh leads elsewhere"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    write(tmp_path / "a.h5", **changes)
    with pytest.raises(UserError, match=reason):
        read(tmp_path / "a.h5")


def test_what_lies_in_other_files_or_is_too_large_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", wh=None)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        secret = tmp_path / "secret"
        secret.write_bytes(bytes(16 * 2))
        file.create_dataset("wh", (2, 2), "i8", external=[(str(secret), 0, 32)])
    with pytest.raises(UserError, match="wh lies in other files"):
        read(tmp_path / "a.h5")
    write(tmp_path / "b.h5", features=None)
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file.create_dataset("features", (2, REGIONS, 1 << 28), "f4", chunks=(1, 1, 1 << 28), compression="gzip")
    with pytest.raises(UserError, match="bytes a piece"):
        read(tmp_path / "b.h5")


def test_a_broken_file_and_a_missing_library_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        read(tmp_path / "a.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs h5py: pip install 'm3p-trainer\[hdf5\]'"):
        read(tmp_path / "a.h5")
