"""Of trainer/m3p/retrieval/pictures.py: the gallery holds every picture once, under a name of its own."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3p.data.shards.index_folder import index_folder
from m3p.errors import UserError
from m3p.recipe.evaluation import EvaluationConfig
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.retrieval.pictures import Pictures, check_evaluations, load_pictures, picture_bytes
from tests.data.broken import REGIONS, as_before, pair, picture, write


@pytest.fixture
def recipe(tiny: Path) -> Recipe:
    return load_recipe(tiny, [f"visual.feature_size={REGIONS.feature_size}", f"visual.classes={REGIONS.classes}"])


def gallery(recipe: Recipe, folder: Path, *shards: list[dict[str, Any]]) -> Pictures:
    """Write a record a picture, no two pictures alike unless the record says `size`, and load them."""
    folder.mkdir()
    sizes = itertools.count(20)
    for name, records in zip("abc", shards, strict=False):
        content = [
            {**pair(0), "jpg": picture(size=record.pop("size", next(sizes))), "json": json.dumps(record).encode()}
            for record in map(dict, records)
        ]
        write(folder / f"{name}.tar", [(str(number), members) for number, members in enumerate(content)])
    index_folder(folder, "captions")
    return load_pictures(recipe, "dev", EvaluationConfig(path=str(folder)))


def test_pictures_without_an_id_are_told_apart(recipe: Recipe, tmp_path: Path) -> None:
    records = [{"captions": {"en": f"picture {number}"}, "id": None, "concept": ""} for number in range(6)]
    found = gallery(recipe, tmp_path / "shards", records[:3], records[3:])
    assert found.pool.images == [f"{shard}.tar#{number}" for shard in "ab" for number in range(3)]
    np.testing.assert_array_equal(found.pool.right("en"), np.eye(6, dtype=bool))


def test_ids_are_taken_whole(recipe: Recipe, tmp_path: Path) -> None:
    records = [{"captions": {"en": name}, "id": name} for name in ("a/0", "b/0")]
    found = gallery(recipe, tmp_path / "shards", records)
    assert found.pool.images == ["a/0", "b/0"]
    np.testing.assert_array_equal(found.pool.right("en"), np.eye(2, dtype=bool))


def test_pictures_of_one_concept_share_their_captions(recipe: Recipe, tmp_path: Path) -> None:
    records = [{"captions": {"en": "a dog"}, "id": name, "concept": "dog"} for name in "xy"]
    found = gallery(recipe, tmp_path / "shards", records)
    assert found.pool.right("en").tolist() == [[True], [True]]


def test_an_id_that_comes_twice_is_an_error(recipe: Recipe, tmp_path: Path) -> None:
    record = {"captions": {"en": "a dog"}, "id": "7"}
    with pytest.raises(UserError, match=r"two pictures with the id '7': a\.tar, sample 0, and b\.tar, sample 1\. Give"):
        gallery(recipe, tmp_path / "shards", [record], [{**record, "id": "8"}, record])


@pytest.mark.parametrize("before", [False, True], ids=["index", "index of an earlier version"])
@pytest.mark.parametrize("ids", [True, False])
def test_a_row_a_caption_counts_as_one_picture_with_all_its_captions(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: bool, ids: bool
) -> None:
    records = [
        {
            "captions": {"en": f"picture {number}, {caption}"},
            "size": 30 + number,
            **({"id": f"{number}"} if ids else {}),
        }
        for number in range(3)
        for caption in range(5)
    ]
    found = gallery(recipe, tmp_path / "shards", records[:7], records[7:])
    if before:
        as_before(tmp_path / "shards")
        found = load_pictures(recipe, "dev", EvaluationConfig(path=str(tmp_path / "shards")))
    assert found.pool.images == (["0", "1", "2"] if ids else ["a.tar#0", "a.tar#5", "b.tar#3"])
    assert len(found.places) == len(found.visuals) == 3
    np.testing.assert_array_equal(found.pool.right("en"), np.eye(3, dtype=bool).repeat(5, axis=1))
    assert "its 15 samples count as 3 pictures" in capsys.readouterr().err


def test_a_stored_picture_that_cannot_be_read_is_not_shown(recipe: Recipe, tmp_path: Path) -> None:
    for name, content in (("good", picture()), ("cut", picture()[:300]), ("gif", picture("GIF"))):
        (folder := tmp_path / name).mkdir()
        write(folder / "a.tar", [("0", {**pair(0), "jpg": content})])
        index_folder(folder, "captions")
        found = load_pictures(recipe, "dev", EvaluationConfig(path=str(folder)))
        assert picture_bytes(found, 0) == (content if name == "good" else b""), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.train.path=/nowhere", r"evaluation\.train: /nowhere is not a source"),
        ("evaluation.train.languages=[en, tlh]", r"evaluation\.train\.languages: .* has no caption in tlh; it has "),
        ("visual.feature_size=5", r"evaluation\.train: .*region features of width 6"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before(tiny: Path, override: str, message: str) -> None:
    check_evaluations(load_recipe(tiny))
    with pytest.raises(UserError, match=message):
        check_evaluations(load_recipe(tiny, [override]))


def test_a_picture_that_cannot_be_read_is_left_out_and_named(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "shards").mkdir()
    content = [
        (str(number), {**pair(0), "json": json.dumps({"captions": {"en": f"picture {number}"}}).encode()})
        for number in range(3)
    ]
    for number, (_, members) in enumerate(content):
        members["jpg"] = picture(size=20 + number)
    content[1][1]["regions.npz"] = b"PK\x03\x04 and no more"
    write(folder / "a.tar", content)
    index_folder(folder, "captions")
    found = load_pictures(recipe, "dev", EvaluationConfig(path=str(folder)))
    assert [caption.text for caption in found.pool.captions["en"]] == ["picture 0", "picture 2"]
    assert len(found.pool.images) == len(found.visuals) == 2
    (unreadable,) = found.unreadable
    assert unreadable.startswith("a.tar, sample 1: unreadable regions.npz")
    assert "1 of 3 samples cannot be read and are left out: a.tar, sample 1" in capsys.readouterr().err
