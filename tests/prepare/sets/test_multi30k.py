"""Files in the layout of github.com/multi30k/dataset, made by hand."""

import gzip
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from m3p.cli.main import app
from m3p.data.sample import BadSamples
from m3p.data.shards.manifest import Manifest
from m3p.errors import UserError
from m3p.prepare.sets.multi30k import read_multi30k
from tests.data.broken import source

NAMES = ["1000092795.jpg", "10002456.jpg", "1000268201.jpg"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Both tasks and the pictures, no two alike."""
    pictures = tmp_path / "flickr30k-images"
    pictures.mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (16, 16), (90 * number, 0, 0)).save(pictures / name)
    for task in (1, 2):
        (tmp_path / f"task{task}" / "raw").mkdir(parents=True)
        (tmp_path / f"task{task}" / "image_splits").mkdir()
    (tmp_path / "task1/image_splits/train.txt").write_text("\n".join(NAMES) + "\n")
    (tmp_path / "task2/image_splits/train_images.txt").write_text("\n".join(NAMES) + "\n")
    for code in ("en", "de", "fr", "cs"):
        lines = "".join(f"{code} caption of {name}\n" for name in NAMES)
        (tmp_path / f"task1/raw/train.{code}.gz").write_bytes(gzip.compress(lines.encode()))
    for code in ("en", "de"):
        for number in range(1, 6):
            lines = "".join(f"{code} caption {number} of {name}\n" for name in NAMES)
            (tmp_path / f"task2/raw/train.{number}.{code}.gz").write_bytes(gzip.compress(lines.encode()))
    return tmp_path


def run(raw: Path, *arguments: str) -> str:
    made = CliRunner().invoke(
        app,
        ["prepare", "multi30k", *arguments, "--images", str(raw / "flickr30k-images"), "--output", str(raw / "out")],
    )
    if isinstance(made.exception, UserError):
        raise made.exception
    assert made.exit_code == 0, made.output
    return made.output


def test_task_1_has_a_caption_a_language_and_the_manifest_says_so(raw: Path) -> None:
    said = run(raw, str(raw / "task1"), "--task", "1")
    manifest = Manifest.load(raw / "out")
    assert manifest.captions == {"cs": 3, "de": 3, "en": 3, "fr": 3}
    assert manifest.origin == {
        "set": "multi30k", "task": "1", "split": "train", "caption_source": "human translation",
        "captions_per_picture": "1", "licence": "not stated",
    }  # fmt: skip
    assert "set: multi30k; split: train; task: 1; caption_source: human translation" in said
    made = source(raw / "out")
    found = {sample.id: sample.captions for sample in (made.read(index, BadSamples([])) for index in range(3))}
    assert found["10002456"] == {code: [f"{code} caption of 10002456.jpg"] for code in ("cs", "de", "en", "fr")}


def test_the_english_captions_of_task_1_alone_are_no_translations(raw: Path) -> None:
    run(raw, str(raw / "task1"), "--task", "1", "--language", "en")
    assert Manifest.load(raw / "out").origin["caption_source"] == "human"
    run(raw, str(raw / "task1"), "--task", "1", "--language", "en", "--language", "de", "--overwrite")
    assert Manifest.load(raw / "out").origin["caption_source"] == "human translation"


def test_task_2_has_five_captions_in_two_languages(raw: Path) -> None:
    run(raw, str(raw / "task2"), "--task", "2")
    assert Manifest.load(raw / "out").origin["caption_source"] == "human"
    made = source(raw / "out")
    found = {sample.id: sample.captions for sample in (made.read(index, BadSamples([])) for index in range(3))}
    assert found["1000268201"] == {
        code: [f"{code} caption {number} of 1000268201.jpg" for number in range(1, 6)] for code in ("de", "en")
    }


def test_a_missing_file_of_the_five_is_said(raw: Path) -> None:
    (raw / "task2/raw/train.4.de.gz").unlink()
    said = run(raw, str(raw / "task2"), "--task", "2")
    assert "train.4.de not there: pictures have 4 captions in de, where the published set has 5" in said
    assert "captions in en" not in said


def test_one_language_can_be_chosen_and_one_that_is_not_there_is_named(raw: Path) -> None:
    run(raw, str(raw / "task1"), "--task", "1", "--language", "de", "--language", "cs")
    assert list(Manifest.load(raw / "out").captions) == ["cs", "de"]
    with pytest.raises(UserError, match=r"has no captions of train in ja; it has cs, de, en, fr"):
        run(raw, str(raw / "task1"), "--task", "1", "--language", "ja", "--overwrite")


def test_the_list_of_test_2017_mscoco_names_captions_too(raw: Path) -> None:
    (raw / "task1/image_splits/test_2017_mscoco.txt").write_text("COCO_train2014_000000000009.jpg#48\n")
    (raw / "task1/raw/test_2017_mscoco.en").write_text("a table\n")
    (entry,) = read_multi30k(raw / "task1", 1, "test_2017_mscoco")
    assert isinstance(entry.record, dict)
    assert entry.record["image"][0] == "COCO_train2014_000000000009.jpg"
    wanted = {"id": "COCO_train2014_000000000009", "captions": {"en": ["a table"]}, "published_id": "coco/9"}
    assert {name: entry.record[name] for name in wanted} == wanted


def test_files_that_do_not_belong_together_are_named(raw: Path) -> None:
    with pytest.raises(
        UserError, match=r"train_images\.txt does not exist: give the folder of Task 2 .*; image_splits holds"
    ):
        run(raw, str(raw / "task1"), "--task", "2")
    (raw / "task2/image_splits/train.txt").write_text("\n".join(NAMES) + "\n")
    with pytest.raises(
        UserError, match=r"holds train\.1\.de\.gz, a file of Task 2: written independently.* Say --task 2"
    ):
        run(raw, str(raw / "task2"), "--task", "1")
    run(raw, str(raw / "task2"), "--task", "2")
    run(raw, str(raw / "task1"), "--task", "1", "--overwrite")
    with pytest.raises(UserError, match=r"val\.txt does not exist"):
        run(raw, str(raw / "task1"), "--task", "1", "--split", "val", "--overwrite")
    (raw / "task1/raw/train.de.gz").write_bytes(gzip.compress(b"one line\n"))
    with pytest.raises(
        UserError, match=r"train\.de\.gz has 1 lines, but the list of pictures of train 3.*: copy both again"
    ):
        run(raw, str(raw / "task1"), "--task", "1", "--overwrite")
    (raw / "task1/raw/train.de.gz").write_bytes((raw / "task1/raw/train.en.gz").read_bytes())
    run(raw, str(raw / "task1"), "--task", "1", "--overwrite")


def test_missing_pictures_empty_captions_and_ids_twice_are_mistakes(raw: Path) -> None:
    (raw / "flickr30k-images" / NAMES[0]).unlink()
    (raw / "task1/image_splits/train.txt").write_text(f"{NAMES[0]}\n{NAMES[1]}\n{NAMES[1]}\n")
    (raw / "task1/raw/train.de.gz").write_bytes(gzip.compress(b"eins\n\ndrei\n"))
    message = r"(?s)line 1: image '1000092795\.jpg' does not exist.*line 2: caption de is \[''\].*"
    with pytest.raises(UserError, match=message):
        run(raw, str(raw / "task1"), "--task", "1")
    (raw / "task1/raw/train.de.gz").write_bytes(gzip.compress(b"eins\nzwei\ndrei\n"))
    with pytest.raises(UserError, match=r"line 3: id '10002456' is that of line 2 again"):
        run(raw, str(raw / "task1"), "--task", "1")
    assert not (raw / "out").exists()
