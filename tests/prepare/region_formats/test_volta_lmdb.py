import base64
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from m3p.errors import UserError
from m3p.prepare.region_formats.stored import ReadOptions, Stored
from m3p.prepare.region_formats.volta_lmdb import is_lmdb, read_volta_lmdb

FEATURES = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
BOXES = np.array([[64, 48, 320, 240], [0, 0, 640, 480]], np.float32)


def packed(array: Any) -> str:
    return base64.b64encode(array.tobytes()).decode()


def row(**changes: Any) -> dict[str, Any]:
    """A picture as convert_flickr30k_lmdb.py writes it."""
    found = {
        "img_id": "1", "img_h": "480", "img_w": "640", "objects_id": packed(np.array([3, 1])), "num_boxes": "2",
        "boxes": packed(BOXES), "features": packed(FEATURES), **changes,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def write(folder: Path, pictures: dict[str, Any]) -> Path:
    """Write a database, with the list of its keys."""
    with lmdb.open(str(folder), map_size=2**20) as database, database.begin(write=True) as writer:
        for name, content in pictures.items():
            writer.put(name.encode(), content if isinstance(content, bytes) else pickle.dumps(content))
        writer.put(b"keys", pickle.dumps([name.encode() for name in pictures]))
    return folder


def read(folder: Path) -> list[Stored]:
    return list(read_volta_lmdb(folder, ReadOptions(2)))


def test_text_of_a_table_and_arrays_are_the_same_picture(tmp_path: Path) -> None:
    arrays = row(
        boxes=BOXES, features=FEATURES, objects_id=np.array([3, 1]), img_w=np.int64(640), img_h=np.array([480])
    )
    found = read(write(tmp_path, {"1": row(), "2": OrderedDict(row()), "3": arrays}))
    assert is_lmdb(tmp_path)
    assert [stored.name for stored in found] == ["1", "2", "3"]
    for stored in found:
        assert isinstance(stored.regions, dict), stored.regions
        np.testing.assert_array_equal(stored.regions["features"], FEATURES)
        np.testing.assert_allclose(stored.regions["boxes"][0], [0.1, 0.1, 0.5, 0.5], rtol=1e-6)
        assert stored.regions["class_ids"].tolist() == [3, 1]


def test_a_distribution_is_kept_and_classes_may_be_missing(tmp_path: Path) -> None:
    probs = np.array([[0.1, 0.6, 0.3], [0.25, 0.35, 0.4]], np.float32)
    found = read(write(tmp_path, {"1": row(cls_prob=packed(probs)), "2": row(objects_id=None)}))
    assert isinstance(found[0].regions, dict)
    assert found[0].regions["class_ids"].tolist() == [[1, 2], [2, 1]]
    assert isinstance(found[1].regions, dict)
    assert "class_ids" not in found[1].regions


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (row(features=Evil()), "names builtins.exec, which is not plain data"),
        (OrderedDict, "it holds no data"),
        (row(img_w=None), "img_w is 'None'"),
        (row(boxes=None), "boxes is no array of numbers"),
        (row(boxes="?"), "boxes: not base64"),
        (row(features=packed(FEATURES[0])[:-4]), "features: "),
        (row(features=FEATURES[:, :0]), "features is no array of numbers"),
        ([1], "it is a list; the rule is a dict"),
        (b"\x93\x01", "which plain data does not need|cannot be read"),
    ],
)
def test_a_wrong_picture_is_told_and_nothing_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (stored,) = read(write(tmp_path / "base", {"1": content}))
    with pytest.raises(ValueError, match=reason):
        raise ValueError(stored.regions)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"x" * 8192)
    assert not is_lmdb(tmp_path)
    with pytest.raises(UserError, match="not a readable LMDB database"):
        read(tmp_path)


def test_a_file_that_was_cut_is_refused_before_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, {f"{number}": row(features=packed(np.zeros((2, 5000), np.float32))) for number in range(4)})
    os.truncate(tmp_path / "data.mdb", 40_000)
    with pytest.raises(UserError, match=r"has 40,000 bytes and should have [\d,]+: it was cut; copy it again"):
        read(tmp_path)
