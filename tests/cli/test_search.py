"""The commands round an index: made, searched by words and by a picture, served; mistakes are one message."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from m3p.cli.main import app
from m3p.errors import UserError
from m3p.search.serve.server import Server
from tests.search.conftest import draw
from tests.test_export import write_run
from tests.tiny import make_tiny


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that sees pixels, an album, and an index of it."""
    folder = tmp_path_factory.mktemp("searched")
    write_run(make_tiny(folder, "patches"), folder / "run", visual="patches")
    for number in range(5):
        draw(folder / f"album/p{number}.png", number)
    (folder / "album/broken.png").write_bytes(b"no picture")
    said = run("index-pictures", folder / "run", folder / "album", "--output", folder / "index")
    assert "1 pictures cannot be read and are left out: broken.png: unreadable picture" in said
    assert f"{folder / 'index'}: 5 added; 5 pictures, searched exactly (flat)" in said
    return folder


@pytest.mark.long
def test_an_index_is_searched_by_words_and_by_a_picture(place: Path) -> None:
    assert run("search", place / "index", "犬", "--top", 3).count(".png") == 3
    found = run("search", place / "index", "--image", place / "album/p2.png", "--top", 2).splitlines()
    assert found[0].split() == ["1", "1.000", "p2.png"]
    page = (place / "index/search.html").read_text()
    assert page.count("data:image/png") == 2
    assert "pictures like" in page


def test_a_run_is_searched_by_a_picture_too(place: Path) -> None:
    found = run("search", place / "run", "--image", place / "raw/p007.png", "--top", 1).splitlines()
    assert found[0].split() == ["1", "1.000", "p007"]


def test_pictures_are_taken_out_by_their_ids(place: Path, tmp_path: Path) -> None:
    run("index-pictures", place / "run", place / "album", "--output", tmp_path / "index")
    said = run(
        "index-pictures", place / "run", "--output", tmp_path / "index", "--remove", "p0.png", "--remove", "p1.png"
    )
    assert "2 removed; 3 pictures" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["search", "index"], "takes one query"),
        (["search", "index", " \u200b "], "shows nothing; write words"),
        (["search", "index", "Hund", "--image", "album/p0.png"], "takes one query"),
        (["search", "index", "Hund", "--evaluation", "dev"], "is an index, which is searched as a whole"),
        (["search", "run", "Hund", "--run", "run"], "is no index of pictures"),
        (["search", "index", "--image", "nowhere.png"], "no such file"),
        (["index-pictures", "run", "--output", "index"], "one of the two"),
        (["index-pictures", "run", "nowhere", "--output", "new"], "no such folder"),
        (["serve", "run"], "no index of pictures; make one with"),
    ],
)
def test_mistakes_are_one_message(place: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match=reason):
        run(*words)


def test_a_server_says_where_it_is_and_who_may_ask(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", stopped)
    said = run("serve", place / "index", "--port", 0)
    assert "5 pictures at http://127.0.0.1:" in said
    assert "no password" not in said
    assert "there is no password" in run("serve", place / "index", "--port", 0, "--host", "0.0.0.0")
