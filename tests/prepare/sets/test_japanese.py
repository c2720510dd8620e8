"""STAIR and YJ: the form of captions_*.json, in Japanese, of pictures of MSCOCO."""

import json
from pathlib import Path

import pytest

from m3p.errors import UserError
from tests.prepare.sets.raw import origin, picture, run, stored

TEXTS = ["犬が走っている", "小さな犬", "犬", "草の上の犬", "白い犬"]


def annotations(path: Path) -> Path:
    images = [
        {"license": 5, "file_name": f"COCO_train2014_{number:012d}.jpg", "height": 16, "width": 16, "id": number,
         "coco_url": "", "flickr_url": "", "date_captured": "2013-11-14 16:28:13"}
        for number in (9, 57870)
    ]  # fmt: skip
    captions = [
        {"image_id": image["id"], "id": 10 * number + place, "caption": text, "tokenized_caption": "犬 が"}
        for number, image in enumerate(images)
        for place, text in enumerate(TEXTS)
    ]
    path.write_text(json.dumps({"images": images, "annotations": captions}))
    return path


@pytest.mark.parametrize(
    ("command", "name", "split"),
    [("stair", "stair_captions_v1.2_train.json", "train"), ("yj", "yjcaptions26k_clean.json", None)],
)
def test_five_japanese_captions_a_picture(tmp_path: Path, command: str, name: str, split: str | None) -> None:
    source = annotations(tmp_path / name)
    picture(tmp_path / "images" / "train2014" / "COCO_train2014_000000000009.jpg", 9)
    picture(tmp_path / "images" / "COCO_train2014_000000057870.jpg", 57)
    run(command, source, "--images", tmp_path / "images", output=tmp_path / "out")
    assert stored(tmp_path / "out")["9"] == {
        "id": "9", "captions": {"ja": TEXTS}, "published_id": "coco/9", "files": ["jpg"]
    }  # fmt: skip
    told = origin(tmp_path / "out")
    assert (told["set"], told.get("split"), told["caption_source"]) == (command, split, "human")
    assert (told["captions_per_picture"], told["licence"]) == ("5", "CC BY 4.0")


def test_the_file_of_the_other_set_is_refused_by_its_name(tmp_path: Path) -> None:
    for command, name, other in (
        ("stair", "yjcaptions26k_clean.json", "yj"),
        ("yj", "stair_captions_v1.2_val.json", "stair"),
    ):
        with pytest.raises(UserError, match=rf"by its name: give m3p prepare {other}\."):
            run(command, annotations(tmp_path / name), "--images", tmp_path, output=tmp_path / "out")


def test_pictures_are_found_under_the_names_of_2017(tmp_path: Path) -> None:
    source = annotations(tmp_path / "stair_captions_v1.2_train.json")
    picture(tmp_path / "images" / "train2017" / "000000000009.jpg", 9)
    picture(tmp_path / "images" / "val2017" / "000000057870.jpg", 57)
    run("stair", source, "--images", tmp_path / "images", output=tmp_path / "out")
    assert len(stored(tmp_path / "out")) == 2


def test_a_missing_picture_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    source = annotations(tmp_path / "yjcaptions26k_clean.json")
    picture(tmp_path / "images" / "COCO_train2014_000000000009.jpg", 9)
    with pytest.raises(
        UserError, match=r"picture 1 .*does not exist \(looked for .*train2014/COCO_train2014_000000057870"
    ):
        run("yj", source, "--images", tmp_path / "images", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
