import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
import yaml

from m3p.data.shards.index_folder import index_folder
from m3p.data.shards.manifest import Manifest
from m3p.data.shards.tar_samples import shown_samples
from m3p.data.source import Source, SourceConfig
from m3p.data.storage.folders import LocalFolder
from m3p.data.storage.reader import ShardReader
from m3p.errors import BadSample, UserError
from m3p.model.build import build_model
from m3p.objectives.tasks import TASKS
from m3p.prepare.features import prepare_features
from m3p.prepare.linked import Side, link_shards
from m3p.prepare.side_files import SideFile
from m3p.recipe.load import parse_recipe
from m3p.recipe.recipe import Recipe
from m3p.training.build_objectives import build_objectives
from m3p.visual.tower.folder import tower_hash
from m3p.visual.tower.source import Tower
from m3p.visual.tower.store import MEMBER, StoredTower, pack_tokens
from tests.visual.tower.towers import make_tower_folder

TOWER = "vit"
"""Of the tests' small towers."""


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small tower."""
    return make_tower_folder(tmp_path_factory.mktemp("tower") / TOWER, TOWER)


@pytest.fixture(scope="module")
def pictures(tiny: Path) -> Path:
    """The shards of the tiny run."""
    return tiny.parent / "shards" / "train"


@pytest.fixture(scope="module")
def stored(pictures: Path, tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with four tokens of the tower in the place of each picture."""
    output = tmp_path_factory.mktemp("stored") / "train"
    prepare_features(pictures, tower, output, 4, "float16", 5, 1, "cpu")
    return output


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of the files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.long
def test_samples_and_captions_are_those_of_the_pictures(pictures: Path, stored: Path, tower: Path) -> None:
    mine, theirs = Manifest.load(stored), Manifest.load(pictures)
    assert mine.stored_tower == StoredTower(tower=tower_hash(tower), tokens=4, width=16, format="float16")
    assert mine.captions == theirs.captions
    assert [(shard.name, shard.samples) for shard in mine.shards] == [
        (shard.name, shard.samples) for shard in theirs.shards
    ]
    for shard in mine.shards:
        for one, other in zip(shown_samples(stored / shard.name), shown_samples(pictures / shard.name), strict=True):
            assert one.key == other.key
            assert one.members["json"] == other.members["json"]
            assert set(one.members) == {"json", MEMBER}
    readers = [ShardReader(LocalFolder(folder)) for folder in (stored, pictures)]
    names = [reader.picture(1, 3) for reader in readers]
    assert names[0] == names[1] != "", "a picture is itself in both"
    assert {path.name for path in stored.iterdir()} >= {"manifest.json", "features.json"}
    assert not [path.name for path in stored.iterdir() if path.name.startswith(".")]


def recipe_on(tiny: Path, tower: Path, source: Path, **fields: Any) -> Recipe:
    """Return the tiny recipe with the tower, its pairs from `source`."""
    raw = yaml.safe_load(tiny.read_text())
    raw["visual"] = {"kind": "tower", "folder": str(tower), "tokens": 4, **fields}
    for name in ("image_caption", "code_switched"):
        raw["objectives"][name]["sources"][0]["path"] = str(source)
        if fields.get("pool") or fields.get("trained"):
            raw["objectives"][name]["tasks"]["masked_regions"] = 0
    return parse_recipe(raw, "tiny")


def losses(recipe: Recipe) -> dict[str, float]:
    """Return the losses of a turn of pairs, without those over a whole turn, and the sum of what is contrasted."""
    objective = build_objectives(recipe)["code_switched"]
    model = build_model(recipe.model, objective.context.tokenizer.size, recipe.visual, recipe.tasks, seed=0).eval()
    batch = objective.batch(range(14), range(14))
    assert not batch.bad
    with torch.inference_mode():
        outputs = model(batch)
    found = {
        name: float(TASKS[name].loss(output, outputs.targets[name]))
        for name, output in outputs.tasks.items()
        if not TASKS[name].over_turn
    }
    return found | {"contrast": float(outputs.tasks["contrastive"].square().sum() + outputs.tasks["contrastive"].sum())}


@pytest.mark.long
def test_training_from_the_store_has_the_losses_of_training_from_pixels(
    tiny: Path, tower: Path, pictures: Path, stored: Path
) -> None:
    wanted, found = losses(recipe_on(tiny, tower, pictures)), losses(recipe_on(tiny, tower, stored))
    assert {"matching", "masked_words", "masked_regions", "contrast"} <= wanted.keys()
    assert found == pytest.approx(wanted, rel=1e-3)


@pytest.mark.long
def test_stored_pictures_cost_no_look_at_the_towers_folder(stored: Path, tower: Path, tmp_path: Path) -> None:
    shutil.copytree(tower, tmp_path / "tower")
    visual = Tower(kind="tower", folder=tmp_path / "tower", tokens=4)
    members = ShardReader(LocalFolder(stored)).read(0, 0)
    wanted = visual.load(members, None).features
    shutil.rmtree(tmp_path / "tower")
    np.testing.assert_array_equal(visual.load(members, None).features, wanted)


@pytest.mark.long
def test_queries_read_the_whole_grid_from_the_store_and_int8_is_close(
    tiny: Path, tower: Path, pictures: Path, tmp_path: Path
) -> None:
    prepare_features(pictures, tower, tmp_path / "grid", None, "int8", 8, 1, "cpu")
    assert Manifest.load(tmp_path / "grid").stored_tower is not None
    fields = {"pool": "queries", "tokens": 3}
    wanted = losses(recipe_on(tiny, tower, pictures, **fields))
    found = losses(recipe_on(tiny, tower, tmp_path / "grid", **fields))
    assert found == pytest.approx(wanted, rel=2e-2)


def test_a_command_that_was_killed_goes_on_with_the_next_shard(
    pictures: Path, tower: Path, stored: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(stored, output)
    for name in ("manifest.json", "shard-000002.tar", "shard-000002.idx", "shard-000000.idx"):
        (output / name).unlink()
    (output / ".shard-000002.tar.99.partial").write_bytes(b"half")
    before = (output / "shard-000001.tar").stat().st_mtime_ns
    made = prepare_features(pictures, tower, output, 4, "float16", 5, 1, "cpu")
    assert made.shards == 1
    assert (output / "shard-000001.tar").stat().st_mtime_ns == before
    assert files(output) == files(stored)


@pytest.mark.program
def test_processes_side_by_side_make_the_same_bytes(pictures: Path, tower: Path, stored: Path, tmp_path: Path) -> None:
    prepare_features(pictures, tower, tmp_path / "out", 4, "float16", 5, 2, "cpu")
    assert files(tmp_path / "out") == files(stored)


@pytest.mark.long
def test_what_does_not_fit_is_refused_with_the_way_out(
    tiny: Path, tower: Path, pictures: Path, stored: Path, tmp_path: Path
) -> None:
    other = make_tower_folder(tmp_path / "clip", "clip")

    def prepare(source: Path, folder: Path, output: Path, tokens: int | None) -> None:
        prepare_features(source, folder, output, tokens, "float16", 5, 1, "cpu")

    for arguments, message in (
        ((stored, tower, tmp_path / "a", 4), "has 4 tokens of 16 float16 numbers by the tower .* already"),
        ((pictures, other, stored, 4), r"is made otherwise: 4 tokens .*Choose another folder"),
        ((pictures, tower, stored, 9), r"is made otherwise: 4 tokens .*and now 9 tokens"),
        ((pictures, tower, pictures, 4), r"holds shard-000000.tar, which this command did not make"),
        ((pictures, tower, tmp_path / "b", 5), r"--tokens 5: the grid of .* has 16; the rule is a square"),
        ((pictures, tower, tmp_path / "b", 25), r"--tokens 25: the grid of .* has 16; the rule is a square"),
        ((tiny.parent / "shards" / "text" / "en", tower, tmp_path / "b", 4), r"name a source of captioned pictures"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(*arguments)
    for recipe, message in (
        (
            recipe_on(tiny, other, stored),
            r"visual.folder = .* is another tower \(\w+\): name theirs, or make the features",
        ),
        (recipe_on(tiny, tower, stored, tokens=9), r"visual.tokens = 9 asks for 9 x 16: make them with --tokens 9"),
        (recipe_on(tiny, tower, stored, pool="queries"), r"all tokens of the grid asks for 16 x 16: .*--tokens 16"),
        (recipe_on(tiny, tower, stored, trained="all"), r"visual.trained = all changes the tower"),
        (recipe_on(tiny, tower, stored, flip=True), r"visual.crop or visual.flip would change pictures"),
    ):
        with pytest.raises(UserError, match=message):
            build_objectives(recipe)
    raw = recipe_on(tiny, tower, stored).model_dump(mode="json", exclude_none=True)
    raw["objectives"]["image_caption"]["sources"].append({"path": str(pictures), "languages": ["en"]})
    with pytest.raises(
        UserError, match=r"has tokens of a tower and .* has pictures, which one micro-batch cannot hold"
    ):
        build_objectives(parse_recipe(raw, "mixed"))
    patches = parse_recipe({**raw, "visual": {"kind": "patches", "size": 16, "patch": 8}}, "patches")
    with pytest.raises(UserError, match=r"instead of pictures; set visual.kind: tower"):
        build_objectives(patches)


def test_a_picture_that_cannot_be_read_is_named_and_its_sample_is_skipped(tower: Path, tmp_path: Path) -> None:
    from tests.visual.tower.test_source import png

    source = tmp_path / "source"
    source.mkdir()
    good = png(np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8))
    with webdataset.TarWriter(str(source / "shard.tar"), encoder=False) as tar:
        for number, picture in enumerate((good, good[:200], good)):
            tar.write({"__key__": f"k{number}", "png": picture, "txt": f"caption {number}".encode()})
    index_folder(source, "captions")
    made = prepare_features(source, tower, tmp_path / "out", 4, "float16", 2, 1, "cpu")
    assert len(made.bad) == 1
    assert made.bad[0].startswith("shard.tar, k1: unreadable picture")
    opened = Source(
        tmp_path / "out", SourceConfig(path="out"), (0, "x", 0), 1, Tower(kind="tower", folder=tower, tokens=4).load
    )
    assert opened.try_sample(0, 2).picture.features.shape == (1, 4, 16)
    assert opened.try_sample(0, 2).captions == {"en": ["caption 2"]}
    with pytest.raises(BadSample, match="no picture"):
        opened.try_sample(0, 1)


def test_other_captions_beside_the_same_tars_are_not_taken_for_those_that_were_written(
    tower: Path, tmp_path: Path
) -> None:
    from tests.visual.tower.test_source import png

    tars, linked, output = (tmp_path / name for name in ("tars", "linked", "out"))
    tars.mkdir()
    picture = png(np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8))
    with webdataset.TarWriter(str(tars / "shard.tar"), encoder=False) as tar:
        tar.write({"__key__": "k", "png": picture, "txt": b"a dog"})
    for text in ("ein Hund", "der Hund"):
        captions = tmp_path / "captions.jsonl"
        captions.write_text(json.dumps({"key": "k", "caption": {"de": text}}) + "\n")
        link_shards(tars, linked, {}, side=Side([SideFile.of(str(captions))], "key"), overwrite=True)
        if text == "ein Hund":
            prepare_features(linked, tower, output, 4, "float16", 2, 1, "cpu")
    with pytest.raises(UserError, match=r"is made otherwise: .*Choose another folder"):
        prepare_features(linked, tower, output, 4, "float16", 2, 1, "cpu")
    assert b"ein Hund" in next(shown_samples(output / "shard.tar")).members["json"]


def test_shards_that_are_indexed_anew_know_their_tower(stored: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(stored, tmp_path / "moved"))
    (moved / "manifest.json").unlink()
    assert index_folder(moved, "captions").stored_tower == Manifest.load(stored).stored_tower


def test_shards_of_two_towers_are_no_source(tmp_path: Path) -> None:
    for number, tower in enumerate("ab"):
        content = pack_tokens(np.ones((4, 3), np.float32), "float16", tower * 16, 7)
        with webdataset.TarWriter(str(tmp_path / f"{number}.tar"), encoder=False) as tar:
            tar.write({"__key__": "k", MEMBER: content, "json": json.dumps({"captions": {"en": ["x"]}}).encode()})
    with pytest.raises(UserError, match=r"features of different towers: .*\(0.tar\), .*\(1.tar\)"):
        index_folder(tmp_path, "captions")
