"""An index is made, gone on with, added to and taken from; what does not fit or is damaged is refused."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import m3p
from m3p.errors import UserError
from m3p.retrieval.scoring import Scorer
from m3p.search import build, nearest
from m3p.search.build import index_pictures, remove_pictures
from m3p.search.index import BUILT, SearchIndex
from m3p.search.parts import FOLDER, Entry, write_part
from tests.search.conftest import draw
from tests.test_export import write_run


def ids(index: SearchIndex) -> list[str]:
    return sorted(one for part in index.parts for one in part.table().id)


def test_pictures_of_a_folder_are_found_as_they_are_embedded(seeing: Path, album: Path, tmp_path: Path) -> None:
    report = index_pictures(seeing, album, tmp_path / "index", part_rows=4)
    assert (report.added, report.pictures, report.skipped) == (10, 10, 0)
    index, model = SearchIndex(tmp_path / "index"), m3p.load(seeing)
    names = ids(index)
    assert "a/p0.png" in names
    assert len(index.parts) == 3
    embeddings = model.embed_pictures([album / name for name in names])
    (hits,) = index.search(embeddings[3:4], 10)
    scores = embeddings @ embeddings[3]
    assert [hit.entry.id for hit in hits] == [names[n] for n in np.argsort(-scores, kind="stable")]
    assert hits[0].entry.id == names[3]
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert index.stored(hits[0].number) == (album / names[3]).read_bytes()


def test_shards_bring_ids_and_captions(shelf: Path) -> None:
    index = SearchIndex(shelf)
    assert ids(index)[:2] == ["p000", "p001"]
    (hits,) = index.search(index.open_model().embed_texts(["Hund"]), 3)
    assert len(hits) == 3
    assert hits[0].entry.caption
    assert hits[0].entry.language == "en"


def test_a_killed_call_is_gone_on_with(
    seeing: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[int] = []
    embed = Scorer.embed_pictures

    def counted(self: Scorer, pictures: Any) -> Any:
        if len(embedded) == 2:
            raise KeyboardInterrupt
        embedded.append(len(pictures))
        return embed(self, pictures)

    monkeypatch.setattr(Scorer, "embed_pictures", counted)
    with pytest.raises(KeyboardInterrupt):
        index_pictures(seeing, album, tmp_path / "index", part_rows=4)
    with pytest.raises(UserError, match="is not finished"):
        SearchIndex(tmp_path / "index")
    embedded.clear()
    report = index_pictures(seeing, album, tmp_path / "index", part_rows=4)
    assert (report.known, report.added, embedded) == (8, 2, [2])
    monkeypatch.undo()
    index_pictures(seeing, album, tmp_path / "whole", part_rows=4)
    resumed, whole = SearchIndex(tmp_path / "index"), SearchIndex(tmp_path / "whole")
    assert resumed.built == whole.built, "the same vectors under the same numbers"


def test_a_kill_before_the_list_is_written_leaves_no_half_of_a_part(
    seeing: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("m3p.search.parts.write_checked", killed)
        with pytest.raises(KeyboardInterrupt):
            index_pictures(seeing, album, tmp_path / "index")
    assert index_pictures(seeing, album, tmp_path / "index").added == 10
    assert len(list((tmp_path / "index" / FOLDER).glob("*.npy"))) == 1


def test_pictures_are_added_and_removed(seeing: Path, album: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index_pictures(seeing, album, folder, part_rows=4)
    first = SearchIndex(folder)
    numbers = {one: number for part in first.parts for one, number in zip(part.table().id, part.numbers, strict=True)}
    more = draw(tmp_path / "more" / "new.png", 50).parent
    (more / "again.png").write_bytes((album / "a/p0.png").read_bytes())
    with pytest.raises(UserError, match="give --add"):
        index_pictures(seeing, more, folder)
    report = index_pictures(seeing, more, folder, add=True)
    assert (report.added, report.repeated, report.pictures) == (1, 1, 11)
    with pytest.raises(UserError, match="no picture has the id 'nowhere'"):
        remove_pictures(folder, ["nowhere", "a/p0.png"])
    vectors = first.parts[0].vectors(first.settings.width)
    assert remove_pictures(folder, ["a/p0.png", "b/p1.png"]).pictures == 9
    index = SearchIndex(folder)
    assert {"a/p0.png", "b/p1.png"}.isdisjoint(ids(index))
    now = {one: number for part in index.parts for one, number in zip(part.table().id, part.numbers, strict=True)}
    assert now.items() <= {**numbers, "new.png": now["new.png"]}.items(), "others keep their numbers"
    found = index.search(vectors, 9)
    assert all(len(hits) == 9 and "a/p0.png" not in {hit.entry.id for hit in hits} for hits in found)
    assert index_pictures(seeing, album, folder).added == 2, "what was taken out can come back"


def test_a_removal_that_was_killed_is_gone_on_with(
    seeing: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    index_pictures(seeing, album, tmp_path / "index", part_rows=4)
    with monkeypatch.context() as patched:
        patched.setattr(build, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_pictures(tmp_path / "index", ["a/p0.png"])
    with pytest.raises(UserError, match="is not finished"):
        SearchIndex(tmp_path / "index")
    assert remove_pictures(tmp_path / "index", ["a/p0.png", "b/p1.png"]).pictures == 8


def test_other_weights_are_refused(tiny: Path, seeing: Path, album: Path, tmp_path: Path) -> None:
    index_pictures(seeing, album, tmp_path / "index")
    write_run(tiny, tmp_path / "other", "model.projection=12", visual="patches")
    with pytest.raises(UserError, match=r"their vectors cannot be compared"):
        index_pictures(tmp_path / "other", album, tmp_path / "index")
    with pytest.raises(UserError, match=r"their vectors cannot be compared"):
        SearchIndex(tmp_path / "index").open_model(tmp_path / "other")


@pytest.mark.long
def test_a_file_that_has_changed_is_never_shown_nor_taken_for_the_old_one(
    seeing: Path, album: Path, tmp_path: Path
) -> None:
    index_pictures(seeing, album, tmp_path / "index")
    draw(album / "a/p0.png", 77)
    index = SearchIndex(tmp_path / "index")
    number = next(
        n for part in index.parts for one, n in zip(part.table().id, part.numbers, strict=True) if one == "a/p0.png"
    )
    with pytest.raises(m3p.errors.BadSample, match="has changed since it was indexed"):
        index.stored(int(number))
    draw(album / "z/new.png", 78)
    with pytest.raises(
        UserError, match=r"1 pictures are left out, .*: a/p0\.png has the id .* take those out with --remove"
    ):
        index_pictures(seeing, album, tmp_path / "index", part_rows=1)
    index = SearchIndex(tmp_path / "index")
    assert "z/new.png" in ids(index), "what comes behind it is taken in, and the index is whole"
    remove_pictures(tmp_path / "index", ["a/p0.png"])
    assert index_pictures(seeing, album, tmp_path / "index").added == 1


@pytest.mark.long
def test_files_that_are_gone_are_said_and_pruned(seeing: Path, album: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index_pictures(seeing, album, folder, part_rows=4)
    (album / "a/p0.png").unlink()
    (album / "b/p1.png").rename(album / "b/renamed.png")
    report = index_pictures(seeing, album, folder, part_rows=4)
    assert (report.gone, report.missing, report.repeated) == (2, ["a/p0.png", "b/p1.png"], 1)
    report = index_pictures(seeing, album, folder, part_rows=4, prune=True)
    assert (report.removed, report.added, report.gone, report.pictures) == (2, 1, 0, 9)
    assert {"a/p0.png", "b/p1.png"}.isdisjoint(now := ids(SearchIndex(folder)))
    assert "b/renamed.png" in now
    for path in album.rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"--prune: none of the pictures .* is there: is the folder the right one"):
        index_pictures(seeing, album, folder, prune=True)
    assert ids(SearchIndex(folder)) == now


def test_what_is_no_picture_is_counted_and_what_lies_elsewhere_is_not_read(
    seeing: Path, album: Path, tmp_path: Path
) -> None:
    (album / "broken.png").write_bytes(b"\x89PNG no more")
    (album / "bomb.png").write_bytes(b"")
    secret = draw(tmp_path / "secret.png", 60)
    (album / "link.png").symlink_to(secret)
    report = index_pictures(seeing, album, tmp_path / "index")
    assert (report.added, report.skipped) == (10, 3)
    assert any("is a link that leads out" in reason for reason in report.unreadable)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no picture that could be indexed"):
        index_pictures(seeing, tmp_path / "empty", tmp_path / "none")


def test_a_network_of_region_features_indexes_no_plain_folder(tiny: Path, album: Path, tmp_path: Path) -> None:
    write_run(tiny, tmp_path / "run")
    with pytest.raises(UserError, match="stored features and cannot see pixels"):
        index_pictures(tmp_path / "run", album, tmp_path / "index")
    report = index_pictures(tmp_path / "run", tiny.parent / "shards" / "train", tmp_path / "index")
    assert report.pictures > 0


@pytest.mark.parametrize("name", ["search-index.json", BUILT, f"{FOLDER}/*.json", f"{FOLDER}/*.npy"])
def test_damage_is_found_before_anything_is_believed(seeing: Path, album: Path, tmp_path: Path, name: str) -> None:
    index_pictures(seeing, album, tmp_path / "index")
    (path,) = (tmp_path / "index").glob(name)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum is another"):
        SearchIndex(tmp_path / "index")


def test_without_faiss_the_message_says_how_to_get_it(
    seeing: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'm3p-trainer\[search\]'"):
        index_pictures(seeing, album, tmp_path / "index")


def entries(count: int) -> list[Entry]:
    return [Entry(row, f"{row}", 0, f"p{row}.png", "", f"picture {row:016x}", "", "") for row in range(count)]


@pytest.mark.long
def test_a_large_index_is_ivf_pq_and_answers_as_exact_search(
    seeing: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "MAX_FLAT", 1000)
    folder, draws = tmp_path / "index", np.random.default_rng(0)
    index_pictures(seeing, album, folder)
    width = SearchIndex(folder).settings.width
    centres = draws.normal(size=(40, width))
    vectors = centres[draws.integers(0, 40, 3000)] + 0.4 * draws.normal(size=(3000, width))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    for number in range(3):
        write_part(folder, number + 1, entries(1000), vectors[number * 1000 : (number + 1) * 1000])
    index_pictures(seeing, album, folder)
    index = SearchIndex(folder)
    assert index.built.file
    assert index.built.share_found >= nearest.WANTED
    scores, found = index.nearest(vectors[::100], 10)
    true_scores, true = index.exact(vectors[::100], 10)
    assert np.mean([np.isin(a, b).mean() for a, b in zip(true, found, strict=True)]) > 0.95
    assert scores[:, 0] == pytest.approx(true_scores[:, 0], abs=1e-5)
    assert [len(hits) for hits in index.search(vectors[:2], 2000)] == [2000, 2000], "as many as were asked for"
    _removed_from_the_large_index(folder, index)


def _removed_from_the_large_index(folder: Path, index: SearchIndex) -> None:
    """A picture that is taken out is not named again, and k-means is not trained again for it."""
    remove_pictures(folder, ["a/p0.png", "b/p1.png"])
    less = SearchIndex(folder)
    assert less.built.trained_on == index.built.trained_on == 3010
    assert sorted(nearest.numbers_in(less._nearest)) == sorted(np.concatenate([part.numbers for part in less.parts]))
    path = folder / less.built.file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged"):
        SearchIndex(folder)


def test_a_picture_that_only_pillow_can_read_is_decoded_within_bounds(seeing: Path, tmp_path: Path) -> None:
    large = Image.new("1", (9000, 9000))
    (tmp_path / "album").mkdir()
    large.save(tmp_path / "album" / "large.png")
    draw(tmp_path / "album" / "small.png", 1)
    report = index_pictures(seeing, tmp_path / "album", tmp_path / "index")
    assert (report.added, report.skipped) == (1, 1)
    assert "more than visual.max_pixels" in report.unreadable[0]
