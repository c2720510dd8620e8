"""Test pictures in training data: known by content or by their names in published sets, and refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from m3p.checkpoints.seen_pictures import SEEN, read_seen, write_seen
from m3p.data.identity import unknown
from m3p.data.shards.index_folder import index_folder
from m3p.data.shards.manifest import Manifest
from m3p.errors import UserError
from m3p.inspect.lint import NOTE, lint
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.retrieval.leaks import check_leaks, not_known, record_seen, training_sources
from m3p.training.build_objectives import build_objectives
from tests.data.broken import as_before, source
from tests.prepare.sets.raw import picture, region_features, run, stored
from tests.tiny import tiny_recipe as plain_recipe

PATCHES = {"kind": "patches", "size": 16, "patch": 8}


def captions(path: Path, numbers: range, language: str = "en") -> Path:
    """Write a file in the form of captions_*.json, of pictures of MSCOCO."""
    images = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in numbers]
    word = "絵の" if language == "ja" else language
    texts = [{"image_id": number, "caption": f"{word} {number}"} for number in numbers]
    path.write_text(json.dumps({"images": images, "annotations": texts}))
    return path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Ten pictures of MSCOCO: train has 0 to 7, test 6 to 9."""
    for number in range(10):
        picture(tmp_path / "images" / f"COCO_val2014_{number:012d}.jpg", 20 * number)
    for name, numbers in (("train", range(8)), ("test", range(6, 10))):
        source_file = captions(tmp_path / f"{name}.json", numbers)
        run("coco", source_file, "--images", tmp_path / "images", output=tmp_path / "shards" / name)
    return tmp_path


def recipe_of(tiny: Path, folder: Path, train: str = "train", **changes: Any) -> Path:
    """Write a recipe of one objective that trains on `train` and is evaluated on `test`."""
    plain = plain_recipe(tiny.parent) | {"visual": PATCHES}
    objective = plain["objectives"]["image_caption"] | {
        "batch_size": 3, "sources": [{"path": str(folder / "shards" / train)}], "tasks": {"contrastive": 1.0}
    }  # fmt: skip
    plain["objectives"] = {"image_caption": objective}
    plain["run"]["folder"] = str(folder / "run")
    plain["evaluation"] = {"test": {"path": str(folder / "shards" / "test")}} | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain))
    return folder / "recipe.yaml"


def loaded(path: Path, *overrides: str) -> Recipe:
    return load_recipe(path, overrides)


def checked(recipe: Recipe) -> None:
    check_leaks(recipe, training_sources(build_objectives(recipe)))


def test_a_leaked_test_picture_is_refused_naming_both_sources(coco: Path, tiny: Path) -> None:
    path = recipe_of(tiny, coco)
    with pytest.raises(UserError) as caught:
        checked(loaded(path))
    said = str(caught.value)
    assert "evaluation.test: 2 of the 4 pictures of" in said
    assert f"{coco}/shards/test are in objectives.image_caption, {coco}/shards/train, too: 6, 7." in said
    assert f"--leave-out {coco}/shards/test" in said
    assert any("2 of the 4 pictures" in line for line in lint(path, [], 0))
    checked(loaded(path, "evaluation.test.seen_in_training=true"))


def test_the_way_out_that_the_message_names_works(coco: Path, tiny: Path) -> None:
    words = ("--images", coco / "images", "--leave-out", coco / "shards" / "test")
    said = run("coco", coco / "train.json", *words, output=coco / "shards" / "clean")
    assert "2 records were left out" in said
    assert sorted(stored(coco / "shards" / "clean")) == ["0", "1", "2", "3", "4", "5"]
    path = recipe_of(tiny, coco, "clean")
    checked(loaded(path))
    assert [line for line in lint(path, [], 0) if not line.startswith(NOTE)] == []


def test_tars_that_were_only_indexed_have_the_way_out_that_the_message_names(coco: Path, tiny: Path) -> None:
    words = ("--leave-out", coco / "shards" / "test")
    run("img2dataset", coco / "shards" / "train", *words, output=coco / "shards" / "linked")
    path = recipe_of(tiny, coco, "linked")
    checked(loaded(path))
    assert Manifest.load(coco / "shards" / "linked").samples == 6


def test_a_picture_that_was_resized_is_known_by_its_published_name(coco: Path, tiny: Path) -> None:
    for number in range(8):
        picture(coco / "small" / f"{number:012d}.jpg", 20 * number + 5)  # other bytes
    captions(coco / "ja.json", range(8), "ja")
    run("stair", coco / "ja.json", "--images", coco / "small", output=coco / "shards" / "ja")
    with pytest.raises(UserError, match=r"2 of the 4 pictures of .*/test are in .*/ja, too: 6, 7\."):
        checked(loaded(recipe_of(tiny, coco, "ja")))


def test_features_without_pictures_are_known_by_their_published_name(coco: Path, tiny: Path) -> None:
    for number in range(8):
        region_features(coco / "regions" / f"{number}.npz", number)
    run("coco", coco / "train.json", "--regions", coco / "regions", output=coco / "shards" / "features")
    for number in range(6, 10):
        region_features(coco / "others" / f"{number}.npz", number + 0.5)  # of another detector
    run("coco", coco / "test.json", "--regions", coco / "others", "--overwrite", output=coco / "shards" / "test")
    recipe = loaded(recipe_of(tiny, coco, "features"), "visual={kind: regions, feature_size: 4, classes: 5}")
    with pytest.raises(UserError, match=r"2 of the 4 pictures of .*/test are in .*/features, too: 6, 7\."):
        checked(recipe)


def test_pictures_that_an_earlier_run_was_trained_on_are_refused(coco: Path, tiny: Path) -> None:
    """The run that starts from it trains on other pictures itself."""
    before = loaded(recipe_of(tiny, coco), "evaluation={}")
    before.run.folder.mkdir()
    assert record_seen(before, training_sources(build_objectives(before))) == ""
    seen = read_seen(before.run.folder)
    assert seen is not None
    assert len(seen) == 16  # content and name of eight pictures
    before.run.folder.rename(coco / "before")
    words = ("--images", coco / "images", "--leave-out", coco / "shards" / "test")
    run("coco", coco / "train.json", *words, output=coco / "shards" / "clean")
    path = recipe_of(tiny, coco, "clean")
    with pytest.raises(UserError, match=r"2 of the 4 .* are in model\.weights = .*/before, which was trained on them"):
        checked(loaded(path, f"model.weights={coco / 'before'}"))
    checkpoint = coco / "before" / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    with pytest.raises(UserError, match=r"2 of the 4 .* are in model\.weights = .*step-00000001"):
        checked(loaded(path, f"model.weights={checkpoint}"))
    # A run that starts from it has seen them too, and says so to those after it.
    after = loaded(path, f"model.weights={coco / 'before'}", "evaluation={}")
    after.run.folder.mkdir()
    record_seen(after, training_sources(build_objectives(after)))
    again = read_seen(after.run.folder)
    assert again is not None
    assert np.array_equal(again, seen)


def test_what_is_not_known_is_said(coco: Path, tiny: Path) -> None:
    (coco / "before").mkdir()
    recipe = loaded(recipe_of(tiny, coco), f"model.weights={coco / 'before'}")
    sources = training_sources(build_objectives(recipe))
    assert "does not say what it was trained on" in record_seen(recipe, sources)
    (line,) = not_known(recipe, sources)
    assert "before does not say what it was trained on" in line
    assert [line for line in map(unknown, sources.values()) if line] == []
    as_before(coco / "shards" / "train")
    old = source(coco / "shards" / "train")
    assert "was indexed by an earlier version, which did not note its pictures; run `m3p index` again" in unknown(old)
    index_folder(coco / "shards" / "train", "captions", origin=Manifest.load(coco / "shards" / "train").origin)
    assert unknown(source(coco / "shards" / "train")) == ""


def test_names_on_one_side_alone_are_said_since_other_encodings_are_not_recognised(coco: Path, tiny: Path) -> None:
    for number in range(6, 8):
        picture(coco / "own" / f"{number}.jpg", 20 * number + 5)  # what the test has, in other bytes
    records = [{"id": f"x{n}", "image": f"{n}.jpg", "captions": {"en": f"thing {n}"}} for n in range(6, 8)]
    (coco / "own" / "own.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run("captions", coco / "own" / "own.jsonl", output=coco / "shards" / "own")
    for recipe, said in (
        (loaded(recipe_of(tiny, coco, "own")), True),
        (loaded(recipe_of(tiny, coco, "own"), "evaluation.test.seen_in_training=true"), False),
        (loaded(recipe_of(tiny, coco, "train")), False),
    ):
        lines = list(not_known(recipe, training_sources(build_objectives(recipe))))
        assert [f"{coco}/shards/own, only one side names its pictures as published" in line for line in lines] == [
            True
        ] * said


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    assert read_seen(tmp_path) is None
    write_seen(tmp_path, np.arange(3, dtype=np.uint64))
    (tmp_path / SEEN).write_bytes((tmp_path / SEEN).read_bytes()[:70])
    with pytest.raises(UserError, match="cannot be read"):
        read_seen(tmp_path)
    np.save(tmp_path / SEEN, np.zeros(3))
    with pytest.raises(UserError, match=r"holds float64 \(3,\), not numbers of pictures"):
        read_seen(tmp_path)
