"""The CSV file that open_clip trains on."""

import shutil
from pathlib import Path

import pytest

from m3p.errors import UserError
from tests.prepare.sets.raw import picture, run, stored


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for number in range(2):
        picture(tmp_path / "images" / f"{number}.jpg", 90 * number)
    path = tmp_path / "train.csv"
    path.write_text('filepath\ttitle\nimages/0.jpg\ta dog\nimages/1.jpg\t"a ""big"" cat"\nimages/0.jpg\tthe dog\n')
    return path


def test_lines_of_one_path_are_one_picture(table: Path) -> None:
    run("open-clip", table, output=table.parent / "out")
    found = stored(table.parent / "out")
    assert found["images/0.jpg"]["captions"] == {"en": ["a dog", "the dog"]}
    assert found["images/1.jpg"]["captions"] == {"en": ['a "big" cat']}


def test_other_names_and_separators(table: Path) -> None:
    table.write_text("image,text\nimages/0.jpg,ein Hund\n")
    options = ("--language", "de", "--path-column", "image", "--caption-column", "text", "--separator", ",")
    run("open-clip", table, *options, output=table.parent / "out")
    assert stored(table.parent / "out")["images/0.jpg"]["captions"] == {"de": ["ein Hund"]}


@pytest.mark.long
def test_wrong_tables_say_so(table: Path) -> None:
    with pytest.raises(
        UserError, match=r"has no column image; it has 'filepath', 'title': name them with --path-column"
    ):
        run("open-clip", table, "--path-column", "image", output=table.parent / "out")
    content = table.read_text()
    table.write_text(content.replace("filepath\ttitle", "where\twhat").replace("\t", ";"))
    with pytest.raises(
        UserError, match=r"has no column filepath and no column title; it has 'where;what': .*--separator"
    ):
        run("open-clip", table, output=table.parent / "out")
    named = ("--separator", ";", "--path-column", "where", "--caption-column", "what")
    run("open-clip", table, *named, output=table.parent / "out")
    shutil.rmtree(table.parent / "out")
    table.write_text("filepath\ttitle\nimages/9.jpg\ta dog\nimages/0.jpg\t\n")
    with pytest.raises(
        UserError, match=r"(?s)line 2: image 'images/9\.jpg' does not exist.*line 3: caption en is \[''\]"
    ):
        run("open-clip", table, output=table.parent / "out")
    with pytest.raises(UserError, match=r"none\.csv does not exist: give open_clip's CSV file"):
        run("open-clip", table.with_name("none.csv"), output=table.parent / "out")
