"""XTD's repository: captions in three folders, one list of pictures."""

from pathlib import Path

import pytest

from m3p.errors import UserError
from tests.prepare.sets.raw import origin, picture, run, stored

NAMES = ["COCO_val2014_000000000042.jpg", "COCO_train2014_000000000077.jpg"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for folder, language, lines in (
        ("XTD10", "zh", "床上的狗\n一群人\n"),
        ("MIC", "de", "Ein Hund\nLeute\n"),
        ("STAIR", "jp", "犬\n人々\n"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"test_1kcaptions_{language}.txt").write_text(lines)
    (tmp_path / "XTD10" / "test_image_names.txt").write_text("\n".join(NAMES) + "\n")
    for number, name in enumerate(NAMES):
        picture(tmp_path / "images" / name, 60 * number)
    return tmp_path


def prepare(folder: Path, *words: str) -> dict[str, dict[str, object]]:
    run("xtd", folder, "--images", folder / "images", *words, output=folder / "out")
    return stored(folder / "out")


def test_languages_of_three_folders_are_one_set(repository: Path) -> None:
    found = prepare(repository)
    assert found[NAMES[0][:-4]]["captions"] == {"de": ["Ein Hund"], "ja": ["犬"], "zh": ["床上的狗"]}
    assert found[NAMES[1][:-4]]["published_id"] == "coco/77"
    assert (origin(repository / "out")["split"], origin(repository / "out")["captions_per_picture"]) == ("test", "1")


def test_files_that_do_not_belong_together_are_named(repository: Path) -> None:
    with pytest.raises(UserError, match=r"has no captions in fr .*; it has de, ja, zh"):
        prepare(repository, "--language", "fr")
    (repository / "MIC" / "test_1kcaptions_de.txt").write_text("Ein Hund\n")
    with pytest.raises(
        UserError, match=r"test_1kcaptions_de\.txt has 1 lines, but .*test_image_names\.txt 2: copy both"
    ):
        prepare(repository)
    (repository / "XTD10" / "test_1kcaptions_de.txt").write_text("Ein Hund\nLeute\n")
    with pytest.raises(UserError, match=r"both of de: take one of them away"):
        prepare(repository)
    (repository / "MIC" / "test_1kcaptions_de.txt").unlink()
    assert prepare(repository)[NAMES[1][:-4]]["captions"]["de"] == ["Leute"]  # type: ignore[index]
    (repository / "XTD10" / "test_image_names.txt").unlink()
    with pytest.raises(UserError, match=r"test_image_names\.txt does not exist: give the folder of XTD's repository"):
        prepare(repository)
