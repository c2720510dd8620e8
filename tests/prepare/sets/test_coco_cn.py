"""COCO-CN's archive, version 201805v1.1, made by hand."""

from pathlib import Path

import pytest

from m3p.errors import UserError
from tests.prepare.sets.raw import origin, picture, run, stored

NAMES = ["COCO_train2014_000000000101", "COCO_val2014_000000000102", "COCO_train2014_000000000103"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "coco-cn-version1805v1.1"
    folder.mkdir()
    (folder / "coco-cn_train.txt").write_text(f"{NAMES[0]}\n{NAMES[1]}\n")
    (folder / "coco-cn_test.txt").write_text(f"{NAMES[2]}\n")
    (folder / "imageid.human-written-caption.txt").write_text(
        f"{NAMES[0]}#0\t一只猫坐在沙发上\n{NAMES[1]}#zhm#0\t两个人在骑马\n{NAMES[1]}#zhm#1 骑马的人\n{NAMES[2]}#0\t城市夜景\n"
    )
    (folder / "imageid.manually-translated-caption.txt").write_text(
        "".join(f"{NAMES[2]}#{number}\t城市 {number}\n" for number in range(5))
    )
    for number, name in enumerate(NAMES):
        picture(tmp_path / "images" / name.split("_")[1] / f"{name}.jpg", 50 * number)
    return folder


def prepare(archive: Path, *words: str) -> dict[str, dict[str, object]]:
    run("coco-cn", archive, "--images", archive.parent / "images", *words, output=archive.parent / "out")
    return stored(archive.parent / "out")


def test_human_captions_of_a_split(archive: Path) -> None:
    found = prepare(archive)
    assert found[NAMES[1]]["captions"] == {"zh": ["两个人在骑马", "骑马的人"]}
    assert found[NAMES[0]]["published_id"] == "coco/101"
    told = origin(archive.parent / "out")
    assert (told["split"], told["caption_source"], told["captions_per_picture"]) == ("train", "human", "1 to 2")


def test_translated_captions_are_asked_for_and_said(archive: Path) -> None:
    found = prepare(archive, "--split", "test", "--translated")
    assert len(found[NAMES[2]]["captions"]["zh"]) == 5  # type: ignore[index]
    assert origin(archive.parent / "out")["caption_source"] == "human translation"
    with pytest.raises(
        UserError, match=r"captions of none of the 2 pictures of coco-cn_train\.txt: only those of test"
    ):
        prepare(archive, "--translated", "--overwrite")


def test_wrong_files_say_so(archive: Path) -> None:
    with pytest.raises(UserError, match=r"coco-cn_dev\.txt does not exist: give the folder of COCO-CN's archive"):
        prepare(archive, "--split", "dev")
    (archive / "coco-cn_train.txt").write_text(f"{NAMES[0]}\n{NAMES[0]}\nCOCO_val2014_000000000999\n")
    with pytest.raises(UserError, match=r"(?s)picture 2 .*id '.*101' is that of picture 1.*picture 3 .*has no caption"):
        prepare(archive)
    (archive / "coco-cn_train.txt").write_text(f"{NAMES[0]}\n")
    for caption in ("a cat", "猫がいる"):
        (archive / "imageid.human-written-caption.txt").write_text(f"{NAMES[0]}#0\t{caption}\n")
        with pytest.raises(UserError, match=r"1 of its first 1 captions have no Chinese letter, or Japanese ones"):
            prepare(archive)
    (archive / "imageid.human-written-caption.txt").write_text(f"{NAMES[0]} 猫 沙发\n")
    with pytest.raises(UserError, match=r"line 1: .*the rule is IMAGE#NUMBER, a tab, a caption"):
        prepare(archive)
