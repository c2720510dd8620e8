"""JSON files of MSCOCO, Flickr30K and STAIR in their true form, made by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from m3p.cli.main import app
from m3p.data.sample import BadSamples
from m3p.data.shards.manifest import Manifest
from m3p.errors import UserError
from tests.data.broken import source

FIVE = ["a dog", "a small dog", "the dog runs", "one dog", "dog"]


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(path)


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    images = []
    for number, split in enumerate(("train", "restval", "val", "test", "train")):
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{number:012d}.jpg"
        picture(tmp_path / "images" / folder / name, 40 * number)
        sentences = [
            {"tokens": text.split(), "raw": f"{text} {number}", "imgid": number, "sentid": 5 * number + place}
            for place, text in enumerate(FIVE)
        ]
        images.append(
            {"filepath": folder, "filename": name, "split": split, "imgid": number, "cocoid": 400_000 + number,
             "sentids": [5 * number + place for place in range(5)], "sentences": sentences}
        )  # fmt: skip
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return path


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    images, annotations = [], []
    for number in range(3):
        picture(tmp_path / "images" / f"{number:012d}.jpg", 60 * number)
        images.append({"license": 4, "file_name": f"{number:012d}.jpg", "height": 16, "width": 16, "id": number})
        annotations += [
            {"image_id": number, "id": 10 * number + k, "caption": f"{text}\n"} for k, text in enumerate(FIVE)
        ]
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": annotations}))
    return path


def run(path: Path, *arguments: str, command: str = "coco") -> str:
    folder = path.parent
    places = ["--images", str(folder / "images"), "--output", str(folder / "out")]
    made = CliRunner().invoke(app, ["prepare", command, str(path), *places, *arguments])
    if isinstance(made.exception, UserError):
        raise made.exception
    assert made.exit_code == 0, made.output
    return made.output


def captions(folder: Path, number: int) -> dict[str, dict[str, list[str]]]:
    made = source(folder)
    return {sample.id: sample.captions for sample in (made.read(index, BadSamples([])) for index in range(number))}


def test_a_file_of_another_set_or_language_is_refused(karpathy: Path, annotated: Path) -> None:
    with pytest.raises(
        UserError, match=r"is of coco, as it says itself, not of flickr30k: give dataset_flickr30k\.json"
    ):
        run(karpathy, "--split", "test", command="flickr30k")
    with pytest.raises(UserError, match=r"has the form of MSCOCO's captions_\*\.json.*give m3p prepare coco"):
        run(annotated, command="flickr30k")
    for command in ("stair", "yj"):
        with pytest.raises(UserError, match=r"15 of its first 15 captions have no Japanese letter \(kana\), and"):
            run(annotated, command=command)
    content = json.loads(annotated.read_text())

    def caption_all(caption: str) -> None:
        texts = [one | {"caption": caption} for one in content["annotations"]]
        annotated.write_text(json.dumps(content | {"annotations": texts}))

    for caption in ("白い犬", "白狗"):
        caption_all(caption)
        with pytest.raises(UserError, match=r"15 of its first 15 captions have Japanese or Chinese letters, .* in en"):
            run(annotated)
    with pytest.raises(UserError, match=r"15 of its first 15 captions have no Japanese letter"):
        run(annotated, command="stair")
    caption_all("白い犬")
    with pytest.raises(UserError, match=r"captions have no Chinese letter, or Japanese ones, .* in zh"):
        run(annotated, "--language", "zh")
    run(annotated, command="stair")


def test_captions_in_another_language_are_not_called_human(annotated: Path) -> None:
    run(annotated, "--language", "de")
    told = Manifest.load(annotated.parent / "out").origin
    assert (told["caption_source"], told["licence"]) == ("not stated", "not stated")
    run(annotated, "--language", "de", "--caption-source", "machine translation", "--overwrite")
    assert Manifest.load(annotated.parent / "out").origin["caption_source"] == "machine translation"


def test_karpathys_splits(karpathy: Path) -> None:
    said = run(karpathy, "--split", "train")
    assert "pictures of restval, which published systems train on too, are left out" in said
    assert "are left out" not in run(karpathy, "--split", "train", "--split", "restval", "--overwrite")
    found = captions(karpathy.parent / "out", 3)
    assert sorted(found) == ["400000", "400001", "400004"]
    assert found["400001"] == {"en": [f"{text} 1" for text in FIVE]}
    assert Manifest.load(karpathy.parent / "out").origin == {
        "set": "coco", "file": "dataset_coco.json", "split": "train restval", "caption_source": "human",
        "captions_per_picture": "5", "licence": "CC BY 4.0",
    }  # fmt: skip


def test_karpathys_flickr30k(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1000092795.jpg", 7)
    images = [
        {"sentids": [0], "imgid": 0, "sentences": [{"raw": "a dog"}], "split": "val", "filename": "1000092795.jpg"}
    ]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    run(tmp_path / "dataset_flickr30k.json", "--split", "val", command="flickr30k")
    assert captions(tmp_path / "out", 1) == {"0": {"en": ["a dog"]}}
    assert Manifest.load(tmp_path / "out").origin["set"] == "flickr30k"


def test_captions_json_in_any_language(annotated: Path) -> None:
    run(annotated)
    assert captions(annotated.parent / "out", 3)["2"] == {"en": FIVE}
    run(annotated, "--language", "de", "--overwrite")
    assert Manifest.load(annotated.parent / "out").captions == {"de": 3}


@pytest.mark.parametrize("splits", [(), ("dev",)])
def test_a_split_is_asked_for_by_name(karpathy: Path, splits: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"say --split .*it has train 2, restval 1, val 1, test 1"):
        run(karpathy, *(part for split in splits for part in ("--split", split)))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.long
def test_wrong_files_say_what_is_wrong(karpathy: Path, annotated: Path) -> None:
    with pytest.raises(UserError, match="is of one split, as its name says: leave out --split train"):
        run(annotated, "--split", "train")
    (annotated.parent / "images" / "000000000001.jpg").unlink()
    with pytest.raises(UserError, match=r"picture 1 \('000000000001\.jpg'\): image '000000000001\.jpg' does not exist"):
        run(annotated)
    content = json.loads(annotated.read_text())
    change(annotated, annotations=[one for one in content["annotations"] if one["image_id"] != 2])
    with pytest.raises(UserError, match=r"picture 2 .*: it has no caption"):
        run(annotated)
    change(annotated, annotations=content["annotations"], images=content["images"][:2])
    with pytest.raises(UserError, match=r"1 pictures have captions but are not among its images, such as '2'"):
        run(annotated)
    change(annotated, images=[content["images"][0], {**content["images"][2], "id": 0}, *content["images"][1:]])
    with pytest.raises(UserError, match=r"id '0' is that of picture 0 .* again"):
        run(annotated)
    change(karpathy, images=[{"split": "val", "filename": "x.jpg", "imgid": 0}])
    with pytest.raises(UserError, match=r"picture 0 \('x\.jpg'\): sentences are 'None'; the rule"):
        run(karpathy, "--split", "val")
    for text, reason in (("[]", "is no JSON object"), ("{", "broken JSON"), ("{}", "has no list `images`")):
        karpathy.write_text(text)
        with pytest.raises(UserError, match=reason):
            run(karpathy, "--split", "val")
    with pytest.raises(UserError, match="is a folder: give dataset_"):
        run(karpathy.parent)
