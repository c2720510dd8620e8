"""xFlickr&CO's annotations as IGLUE has them: ids of Flickr30K are texts, those of MSCOCO numbers."""

import json
import shutil
from pathlib import Path

import pytest

from m3p.errors import UserError
from tests.prepare.sets.raw import origin, picture, run, stored

COCO = "COCO_val2014_000000000024.jpg"


@pytest.fixture
def iglue(tmp_path: Path) -> Path:
    for language, texts in {"de": ["Ein Mann.", "Ein Zebra."], "ja": ["男の人", "シマウマ"]}.items():
        folder = tmp_path / "xFlickrCO" / "annotations" / language
        folder.mkdir(parents=True)
        lines = [
            {"sentences": [texts[0]], "id": "1007129816", "img_path": "1007129816.jpg"},
            {"sentences": [texts[1]], "id": 24, "img_path": COCO},
        ]
        (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    machine = tmp_path / "xFlickrCO" / "annotations_machine-translate" / "de"
    machine.mkdir(parents=True)
    (machine / "test_gmt.jsonl").write_text(
        json.dumps({"sentences": ["Der Mann."], "id": "1007129816", "img_path": "1007129816.jpg"}) + "\n"
    )
    for shade, name in enumerate(("1007129816.jpg", COCO)):
        picture(tmp_path / "images" / name, 90 * shade)
    return tmp_path


def prepare(folder: Path, *words: str) -> dict[str, dict[str, object]]:
    run("xflickrco", folder / "xFlickrCO", "--images", folder / "images", *words, output=folder / "out")
    return stored(folder / "out")


def test_all_languages_of_a_picture_are_one_sample(iglue: Path) -> None:
    found = prepare(iglue)
    assert found["1007129816"]["captions"] == {"de": ["Ein Mann."], "ja": ["男の人"]}
    assert [found[name]["published_id"] for name in ("1007129816", COCO[:-4])] == ["flickr30k/1007129816", "coco/24"]
    assert origin(iglue / "out")["caption_source"] == "human"


def test_machine_translations_are_never_taken_for_human_captions(iglue: Path) -> None:
    assert prepare(iglue, "--machine-translated")["1007129816"]["captions"] == {"de": ["Der Mann."]}
    assert origin(iglue / "out")["caption_source"] == "machine translation"


def test_a_language_that_lacks_pictures_of_the_others_is_said(iglue: Path) -> None:
    path = iglue / "xFlickrCO" / "annotations" / "de" / "test.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    said = run("xflickrco", iglue / "xFlickrCO", "--images", iglue / "images", output=iglue / "out")
    assert f"de/test.jsonl: 1 of the 2 pictures that the other languages have are not in it, such as '{COCO}'" in said
    assert "ja/test.jsonl" not in said


def test_what_is_missing_or_twice_is_said(iglue: Path) -> None:
    with pytest.raises(UserError, match=r"has no train_100\.jsonl in any language: give the folder datasets/xFlickrCO"):
        prepare(iglue, "--split", "train_100")
    with pytest.raises(UserError, match=r"has no test\.jsonl in fr; it has de, ja: leave the language out\."):
        prepare(iglue, "--language", "fr", "--language", "de")
    assert prepare(iglue, "--language", "de")["1007129816"]["captions"] == {"de": ["Ein Mann."]}
    shutil.rmtree(iglue / "out")
    path = iglue / "xFlickrCO" / "annotations" / "de" / "test.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n" + path.read_text() + '{"image": "x.jpg"}\n')
    with pytest.raises(
        UserError, match=r"(?s)de/test\.jsonl, line 2: img_path .* stands in .* twice.*line 4: img_path"
    ):
        prepare(iglue)
