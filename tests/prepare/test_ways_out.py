"""Each way out that a message of an importer names is gone: the message, then what it says, then the same command again."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3p.data.shards.manifest import Manifest
from m3p.errors import UserError
from tests.prepare.region_formats import test_bottom_up as bottom_up
from tests.prepare.region_formats import test_vinvl as vinvl
from tests.prepare.sets.raw import picture, run, stored
from tests.prepare.sets.test_parquet import encoded


def refused(message: str) -> "pytest.RaisesExc[UserError]":
    return pytest.raises(UserError, match=message)


def test_a_split_is_named_or_left_out(tmp_path: Path) -> None:
    for number in range(2):
        picture(tmp_path / "images" / f"{number}.png", 9 * number)
    places = ("--images", tmp_path / "images")
    image = {"filename": "0.png", "split": "restval", "imgid": 0, "sentences": [{"raw": "a dog"}]}
    karpathy = tmp_path / "dataset_coco.json"
    karpathy.write_text(json.dumps({"images": [image]}))
    with refused(r"say --split .*; it has (\w+) 1") as caught:
        run("coco", karpathy, *places, output=tmp_path / "out")
    named = str(caught.value).rpartition("it has ")[2].split()[0]
    run("coco", karpathy, *places, "--split", named, output=tmp_path / "out")
    annotated = tmp_path / "captions.json"
    images, captions = [{"id": 1, "file_name": "1.png"}], [{"image_id": 1, "caption": "a cat"}]
    annotated.write_text(json.dumps({"images": images, "annotations": captions}))
    with refused("leave out --split restval"):
        run("coco", annotated, *places, "--split", "restval", output=tmp_path / "other")
    run("coco", annotated, *places, output=tmp_path / "other")
    assert Manifest.load(tmp_path / "other").samples == Manifest.load(tmp_path / "out").samples == 1


def test_columns_languages_and_splits_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    made = pa.table({"photo": [encoded(9)], "said": ["ein Hund"]})
    for split in ("train", "test"):
        pq.write_table(made, tmp_path / "set" / f"{split}-00000.parquet")
    words: list[object] = ["parquet", tmp_path / "set"]
    with refused("holds test, train: say which with --split"):
        run(*words, output=tmp_path / "out")  # type: ignore[arg-type]
    words += ["--split", "test"]
    with refused("has no column image; it has photo, said: name them with --image-column and --caption LANG=COLUMN"):
        run(*words, output=tmp_path / "out")  # type: ignore[arg-type]
    words += ["--image-column", "photo"]
    with refused("name the columns with --caption LANG=COLUMN"):
        run(*words, output=tmp_path / "out")  # type: ignore[arg-type]
    with refused("--caption said: write LANG=COLUMN, such as de=caption_german"):
        run(*words, "--caption", "said", output=tmp_path / "out")  # type: ignore[arg-type]
    run(*words, "--caption", "de=said", output=tmp_path / "out")  # type: ignore[arg-type]
    assert stored(tmp_path / "out")["0"]["captions"] == {"de": ["ein Hund"]}


def test_the_folder_of_pictures_is_given_or_links_are_allowed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "elsewhere" / f"{name}.png", ord(name))
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    records = [{"id": name, "image": f"../elsewhere/{name}.png", "captions": "ein Hund"} for name in ("a", "b")]

    def write() -> None:
        (raw / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    write()
    words: list[object] = ["captions", raw / "x.jsonl"]
    with refused(r"text and --language\)[\s\S]*give the folder of the pictures with --images"):
        run(*words, output=tmp_path / "out")  # type: ignore[arg-type]
    words += ["--language", "de"]
    records[0]["image"], records[1]["image"] = "a.png", "link.png"
    write()
    shutil.copy(tmp_path / "elsewhere" / "a.png", raw)
    with refused("leads out of .*: allow that with --follow-links"):
        run(*words, output=tmp_path / "out")  # type: ignore[arg-type]
    run(*words, "--follow-links", output=tmp_path / "out")  # type: ignore[arg-type]
    run(*words, "--images", tmp_path / "elsewhere", "--skip-bad", output=tmp_path / "images")  # type: ignore[arg-type]
    assert [Manifest.load(tmp_path / name).samples for name in ("out", "images")] == [2, 1]


def test_region_features_whose_format_nobody_can_tell_or_that_were_cut(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text(bottom_up.row() + "\n" + bottom_up.row(image_id=7, num_boxes=0) + "\n")
    with refused("its format is not recognised; say --format: (.*)") as caught:
        run("import-regions", tmp_path / "all.txt", output=tmp_path / "out")
    assert "bottom-up" in str(caught.value)
    with refused("--format bottomup is none; there are .*bottom-up"):
        run("import-regions", tmp_path / "all.txt", "--format", "bottomup", output=tmp_path / "out")
    with refused("Mend them, or leave them out with --skip-bad"):
        run("import-regions", tmp_path / "all.txt", "--format", "bottom-up", output=tmp_path / "out")
    run("import-regions", tmp_path / "all.txt", "--format", "bottom-up", "--skip-bad", output=tmp_path / "out")
    folder = tmp_path / "vinvl"
    folder.mkdir()
    vinvl.write(folder, None)
    (folder / "features.lineidx").write_text("0\nx\n")
    with refused("features.lineidx.*; delete it, or copy it again"):
        run("import-regions", folder, output=tmp_path / "vinvl-out")
    (folder / "features.lineidx").unlink()
    run("import-regions", folder, output=tmp_path / "vinvl-out")
