import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from m3p.errors import UserError
from m3p.prepare.import_regions import import_regions, read_class_names
from m3p.prepare.region_folder import NamedBy, check_name, feature_size, read_record, write_regions
from m3p.prepare.region_formats.stored import ReadOptions
from m3p.prepare.regions import load_regions
from tests.cli.test_regions import run
from tests.prepare.region_formats import test_bottom_up as bottom_up
from tests.prepare.region_formats import test_m3p_hdf5 as hdf5
from tests.prepare.region_formats import test_mmf as mmf
from tests.prepare.region_formats import test_vinvl as vinvl
from tests.prepare.region_formats import test_volta_lmdb as lmdb

OPTIONS = ReadOptions(3)


@pytest.mark.long
@pytest.mark.parametrize("format_name", ["bottom-up", "mmf", "vinvl", "m3p-hdf5", "volta-lmdb"])
def test_every_format_is_recognised_and_goes_into_shards(tiny: Path, tmp_path: Path, format_name: str) -> None:
    """By the names of records and pictures that the format has, from its file to shards."""
    source = tmp_path / "source"
    source.mkdir()
    records = [json.loads(line) for line in (tiny.parent / "raw" / "train.jsonl").read_text().splitlines()][:2]
    if format_name == "bottom-up":
        source = source / "all.tsv"
        source.write_text("\n".join(bottom_up.row(image_id=record["id"]) for record in records))
    elif format_name == "mmf":
        for record in records:
            mmf.save(source, Path(record["image"]).stem)
    elif format_name == "vinvl":
        vinvl.write(source, [("k0", vinvl.predicted()), ("k1", vinvl.predicted())])
        for number, record in enumerate(records):
            record["id"] = f"k{number}"
    elif format_name == "volta-lmdb":
        lmdb.write(source, {record["id"]: lmdb.row() for record in records})
    else:
        source = source / "train_0.h5"
        hdf5.write(source, image_id=np.array([record["image"].encode() for record in records]))
    for record in records:
        record["id"] = record["id"] if format_name in ("bottom-up", "vinvl", "volta-lmdb") else f"other {record['id']}"
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, records)))
    said = run("import-regions", source, "--output", tmp_path / "regions")
    assert f"regions of 2 pictures ({format_name})" in said
    shards = run(
        "captions", tmp_path / "all.jsonl", "--images", tiny.parent / "raw", "--regions", tmp_path / "regions",
        "--output", tmp_path / "shards",
    )  # fmt: skip
    assert "2 samples in 1 shards" in shards


def test_mistakes_are_all_reported_and_nothing_is_written(tmp_path: Path) -> None:
    lines = [bottom_up.row(), bottom_up.row(image_id="../x"), bottom_up.row(), bottom_up.row(image_id=7, num_boxes=0)]
    wide = bottom_up.row(image_id=8, features=bottom_up.packed(np.ones((2, 6), np.float32)))
    large = bottom_up.row(image_id=9, features=bottom_up.packed(np.full((2, 5), 1e6, np.float32)))
    source, output = tmp_path / "all.tsv", tmp_path / "out"
    source.write_text("\n".join([*lines, wide, large]))
    reasons = [
        "line 2: '../x': '../x' cannot name a file",
        "line 3: '391895': is in line 1 already",
        "line 4: '7': num_boxes",
        "line 5: '8': features are 6 wide, those before it 5",
        "line 6: '9': features are too large for float16",
    ]
    with pytest.raises(UserError, match="(?s)" + ".*".join(reasons) + ".*Nothing was written"):
        import_regions(source, output, OPTIONS)
    assert not output.exists()
    done = import_regions(source, output, OPTIONS, skip_bad=True)
    assert (done.pictures, len(done.bad)) == (1, 5)
    assert {path.name for path in output.iterdir()} == {"391895.npz", "regions.json"}
    with pytest.raises(UserError, match="is not empty"):
        import_regions(source, output, OPTIONS, skip_bad=True)
    import_regions(source, output, OPTIONS, skip_bad=True, overwrite=True)


def test_names_of_pictures_are_those_of_their_files(tmp_path: Path) -> None:
    hdf5.write(tmp_path / "val.h5")
    import_regions(tmp_path / "val.h5", tmp_path / "out", OPTIONS)
    record = read_record(tmp_path / "out")
    assert record is not None
    assert record.named_by is NamedBy.IMAGE
    assert load_regions(tmp_path / "out" / "000000391895.npz")["features"].shape == (hdf5.USED, hdf5.WIDTH)
    import_regions(tmp_path / "val.h5", tmp_path / "ids", OPTIONS, named_by=NamedBy.ID)
    assert (tmp_path / "ids" / "b.jpg.npz").is_file()


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="not recognised; say --format: m3p-hdf5, volta-lmdb, vinvl, mmf, bottom-up"):
        import_regions(tmp_path / "a.txt", tmp_path / "out", OPTIONS)
    with pytest.raises(UserError, match="--format tsv is none"):
        import_regions(tmp_path / "a.txt", tmp_path / "out", OPTIONS, "tsv")
    with h5py.File(tmp_path / "b.dat", "w"), pytest.raises(UserError, match="has no image_id"):
        import_regions(tmp_path / "b.dat", tmp_path / "out", OPTIONS)


def test_class_names_are_read_of_both_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"label_to_idx": {"cat": 4}}')
    (tmp_path / "a.txt").write_text("background\ncat\n")
    assert read_class_names(tmp_path / "a.json") == {"cat": 4}
    assert read_class_names(tmp_path / "a.txt") == {"background": 0, "cat": 1}
    (tmp_path / "b.json").write_text("[]")
    for name in ("b.json", "none.txt"):
        with pytest.raises(UserError, match="--class-names"):
            read_class_names(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["", ".x", "a/b", "..", "a\\b", "a\nb", "a\x1b[2J", "a\0", "a\u202eb", "x" * 201, "\udcff"]
)
def test_names_that_lead_elsewhere_or_touch_a_terminal_name_no_file(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot name a file|are the most"):
        check_name(name)
    for good in ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "[x] \u732b"):
        assert check_name(good) == good


def test_a_damaged_file_among_the_regions_hides_no_width(tmp_path: Path) -> None:
    assert feature_size(tmp_path) is None
    for number, content in enumerate((b"", b"PK\x03\x04 cut", b"no zip")):
        (tmp_path / f"{number}.npz").write_bytes(content)
    assert feature_size(tmp_path) is None
    arrays = {"boxes": np.full((2, 4), 0.5, np.float32), "features": np.ones((2, 7), np.float32)}
    write_regions(tmp_path, "good", arrays)
    assert feature_size(tmp_path) == 7
