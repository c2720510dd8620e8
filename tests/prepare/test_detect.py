import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m3p.errors import UserError
from m3p.prepare.detect import Detected, detect, pictures_of_folder, pictures_of_records, record_of
from m3p.prepare.detector import Detector
from m3p.prepare.pictures import PictureFolder
from m3p.prepare.region_folder import NamedBy
from m3p.prepare.regions import load_regions

SIZES = {"a": (60, 40), "b": (40, 60), "c": (60, 40), "d": (61, 40), "e": (40, 60)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, (name, (width, height)) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def folder(detector_folder: Callable[[str], Path]) -> Path:
    return detector_folder("yolos")


class Run:
    """Runs of one detector over a folder of pictures."""

    def __init__(self, folder: Path, pictures: Path, output: Path) -> None:
        self.folder, self.pictures, self.output = folder, pictures, output

    def go(self, batch: int = 2, regions: int = 4, output: Path | None = None) -> Detected:
        detector = Detector(self.folder, regions, 3, "cpu")
        record = record_of(self.folder, NamedBy.IMAGE, regions, 3)
        wanted = pictures_of_folder(self.pictures)
        return detect(detector, wanted, PictureFolder(self.pictures), output or self.output, record, batch, threads=2)

    def arrays(self, output: Path) -> dict[str, Any]:
        return {path.stem: load_regions(path) for path in sorted(output.glob("*.npz"))}


@pytest.fixture
def run(folder: Path, pictures: Path, tmp_path: Path) -> Run:
    return Run(folder, pictures, tmp_path / "output")


def test_what_is_found_does_not_depend_on_the_batch(run: Run, tmp_path: Path) -> None:
    assert run.go(batch=1).made == len(SIZES)
    assert run.go(batch=3, output=tmp_path / "other").made == len(SIZES)
    one, other = run.arrays(run.output), run.arrays(tmp_path / "other")
    assert one.keys() == other.keys() == SIZES.keys()
    for name, arrays in one.items():
        for kind, array in arrays.items():
            np.testing.assert_allclose(array, other[name][kind], rtol=1e-2, atol=1e-3)


def test_a_killed_run_goes_on_and_does_no_picture_twice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find, calls = Detector.find, list[int]()

    def killed(self: Detector, pictures: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(len(pictures))
        return find(self, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "find", killed)
        with pytest.raises(KeyboardInterrupt):
            run.go()
    made = {path.name: path.stat().st_mtime_ns for path in run.output.glob("*.npz")}
    assert len(made) == 2
    (run.output / ".x.npz.1.partial").write_bytes(b"half")
    done = run.go()
    assert (done.made, done.found, done.bad) == (len(SIZES) - 2, 2, {})
    assert made.items() <= {path.name: path.stat().st_mtime_ns for path in run.output.glob("*.npz")}.items()
    assert {path.name for path in run.output.iterdir()} == {*(f"{name}.npz" for name in SIZES), "regions.json"}


def test_another_detector_or_setting_is_refused_in_the_same_folder(run: Run, folder: Path, tmp_path: Path) -> None:
    run.go()
    with pytest.raises(UserError, match=r"was made otherwise \(regions 4 there and 3 now\)"):
        run.go(regions=3)
    run.folder = shutil.copytree(folder, tmp_path / "copy" / folder.name)
    content = bytearray((run.folder / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (run.folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"was made otherwise \(content \w+ there and \w+ now\)"):
        run.go()


def test_regions_of_others_are_not_mixed_in(run: Run) -> None:
    run.output.mkdir()
    (run.output / "a.npz").write_bytes(b"x")
    with pytest.raises(UserError, match="holds regions that this command did not make"):
        run.go()


def test_bad_pictures_are_named_and_the_others_are_done(run: Run) -> None:
    (run.pictures / "a.png").write_bytes((run.pictures / "a.png").read_bytes()[:300])
    shutil.copy(run.pictures / "b.png", run.pictures / "c.jpg")
    (run.pictures / "f.jpg").write_text("no picture")
    done = run.go()
    assert done.made == len(SIZES) - 1
    assert done.bad.keys() == {"a.png", "c.png", "f.jpg"}
    assert "its regions would have the name of those of 'c.jpg'" in done.bad["c.png"][0]


def test_records_name_their_pictures_and_wrong_ones_are_told(tmp_path: Path) -> None:
    lines = [
        '{"id": 7, "image": "a.png"}',
        '{"id": "x", "image": "a.png"}',
        '{"id": 7, "image": "b.png"}',
        '{"id": ""}',
        "[]",
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    found = list(pictures_of_records(tmp_path / "all.jsonl"))
    assert found[:2] == [("7", "a.png"), ("x", "a.png")]
    assert [where for where, _ in found[2:]] == ["line 3", "line 4", "line 5"]
    assert "id '7' is that of line 1 again" in found[2][1]


def test_a_name_that_leads_out_of_the_folder_is_a_bad_picture(run: Run, tmp_path: Path) -> None:
    record = json.dumps({"id": "../a", "image": "a.png"})
    (tmp_path / "all.jsonl").write_text(record)
    detector = Detector(run.folder, 4, 3, "cpu")
    made_from = record_of(run.folder, NamedBy.ID, 4, 3)
    wanted = pictures_of_records(tmp_path / "all.jsonl")
    done = detect(detector, wanted, PictureFolder(run.pictures), run.output, made_from, 2, 1)
    assert done.bad == {
        "a.png": [
            "'../a' cannot name a file; the rule is a name without slashes and control characters that does not begin "
            "with a dot"
        ]
    }
    assert not list(run.output.parent.glob("a.npz"))
