"""Each way out that a message about an index of pictures names is gone: the message, what it says, the same call again."""

import re
import shutil
from pathlib import Path

import pytest

from m3p.errors import UserError
from m3p.locks import hold
from m3p.retrieval.search import search
from m3p.search.build import index_pictures, remove_pictures
from m3p.search.index import BUILT, SearchIndex
from tests.search.conftest import draw


def refused(message: str) -> "pytest.RaisesExc[UserError]":
    return pytest.raises(UserError, match=message)


def test_an_index_is_made_finished_added_to_taken_from_and_deleted(seeing: Path, album: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with refused(r"make one with `m3p index-pictures RUN PICTURES --output (.*)`") as caught:
        SearchIndex(folder)
    named = re.search(r"--output (.*)`", str(caught.value))
    assert named
    index_pictures(seeing, album, Path(named[1]))
    (folder / BUILT).unlink()
    with refused("give the command `m3p index-pictures` that made it again"):
        SearchIndex(folder)
    index_pictures(seeing, album, folder)
    assert len(SearchIndex(folder)) == 10
    more = draw(tmp_path / "more" / "new.png", 50).parent
    with refused("to take those of .* too, give --add"):
        index_pictures(seeing, more, folder)
    assert index_pictures(seeing, more, folder, add=True).added == 1
    draw(album / "a/p0.png", 77)
    with refused("take those out with --remove first, or give each its own id"):
        index_pictures(seeing, album, folder)
    remove_pictures(folder, ["a/p0.png"])
    assert index_pictures(seeing, album, folder).added == 1
    every = [one for part in SearchIndex(folder).parts for one in part.table().id]
    with refused("these are all of its pictures; delete the folder instead"):
        remove_pictures(folder, every)
    shutil.rmtree(folder)
    assert index_pictures(seeing, album, folder).added == 10


def test_who_waits_for_the_other_gets_its_turn(seeing: Path, album: Path, tmp_path: Path) -> None:
    index_pictures(seeing, album, tmp_path / "index")
    with hold(tmp_path / "index" / "lock") as held:
        assert held
        with refused("another process is changing this index; wait for its end"):
            remove_pictures(tmp_path / "index", ["a/p0.png"])
    assert remove_pictures(tmp_path / "index", ["a/p0.png"]).removed == 1


def test_a_run_that_was_moved_is_named(seeing: Path, album: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(seeing, tmp_path / "run"))
    index_pictures(run, album, tmp_path / "index")
    run.rename(tmp_path / "moved")
    with refused("is not there any more; name its new place with --run"):
        search(tmp_path / "index", "dog", "", 3)
    hits, _ = search(tmp_path / "index", "dog", "", 3, run=tmp_path / "moved")
    assert len(hits) == 3
    with refused("m3p search takes one query: words in quotes, or --image FILE"):
        search(tmp_path / "index", "dog", "", 3, image=album / "a/p0.png", run=tmp_path / "moved")
    hits, _ = search(tmp_path / "index", "", "", 3, image=album / "a/p0.png", run=tmp_path / "moved")
    assert hits[0].image == "a/p0.png"


@pytest.mark.parametrize("name", ["search-index.json", BUILT, "parts/000001.json", "parts/000001-*.npy"])
def test_a_damaged_file_is_deleted_and_made_again(seeing: Path, album: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "index"
    index_pictures(seeing, album, folder, part_rows=4)
    (path,) = folder.glob(name)
    path.write_bytes(path.read_bytes()[:-5])
    with refused(
        "put a copy back, or delete (.*) and (give the command `m3p index-pictures`|make the index) again"
    ) as found:
        SearchIndex(folder)
    named = re.search(r"or delete (\S+)", str(found.value))
    assert named
    if name != "search-index.json":
        (path if named[1] == "it" else Path(named[1])).unlink()
    else:
        path.unlink()
        with refused(r"has pictures, but no search-index\.json: put it back, or delete .* and begin anew"):
            index_pictures(seeing, album, folder, part_rows=4)
        shutil.rmtree(folder)
    index_pictures(seeing, album, folder, part_rows=4)
    index = SearchIndex(folder)
    assert sorted(one for part in index.parts for one in part.table().id) == sorted(
        place.relative_to(album).as_posix() for place in album.rglob("*.png")
    )
