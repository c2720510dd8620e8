import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from m3p.batch import Allocate
from m3p.data.kinds import TEXT
from m3p.data.loader.loader import DataConfig, MicroBatches, load
from m3p.data.order.plan import MicroBatch, MicroBatchPlan
from m3p.data.order.shuffle import Place
from m3p.data.sample import BadSamples
from m3p.data.source import Source, SourceConfig, find_folders
from m3p.errors import OneRankError, UserError
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives
from m3p.training.stop import ignore_in_worker
from m3p.visual.regions import Regions

REGIONS = Regions(kind="regions", feature_size=6, classes=10)


def source(folder: Path, **fields: object) -> Source:
    config = SourceConfig.model_validate({"path": str(folder), **fields})
    return Source(folder, config, (0, "image_caption", 0), 2, REGIONS.load)


@pytest.fixture
def train(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the pairs that a test may break."""
    return Path(shutil.copytree(tiny.parent / "shards" / "train", tmp_path / "train"))


def test_an_epoch_visits_every_sample_once_and_the_next_in_another_order(train: Path) -> None:
    pairs, bad = source(train), BadSamples([])
    epochs = [[pairs.read(30 * epoch + i, bad).name for i in range(30)] for epoch in range(2)]
    assert all(max(Counter(names).values()) == 1 for names in epochs)
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    assert bad.seen == []


def test_a_bad_sample_is_replaced_by_the_next_of_its_shard_and_named(train: Path) -> None:
    path = train / "shard-000001.tar"
    start = int(np.load(path.with_suffix(".idx"))[3])
    with path.open("r+b") as file:
        file.seek(start + 148)
        file.write(b"0000000\0")  # the checksum of a tar header
    pairs, bad = source(train), BadSamples([])
    found = pairs.read_place(Place(0, 1, 3), bad, augment=False)
    wanted = pairs.read_place(Place(0, 1, 4), BadSamples([]), augment=False)
    assert (found.name, found.owner) == (wanted.name, wanted.owner)
    (message,) = bad.seen
    assert message.startswith(f"{train}/shard-000001.tar, sample 3: ")


def test_the_choices_of_a_sample_are_its_own(train: Path) -> None:
    pairs = source(train)
    one, same, other = (pairs.read(i, BadSamples([])) for i in (5, 5, 6))
    assert next(one.draws("mask")) == next(same.draws("mask"))
    assert next(one.draws("mask")) != next(one.draws("switch"))
    assert next(one.draws("mask")) != next(other.draws("mask"))


def test_text_and_pairs_are_not_mixed_up(tiny: Path) -> None:
    with pytest.raises(UserError, match="holds text, but its objective wants captions"):
        source(tiny.parent / "shards" / "text" / "de")


def test_a_pattern_that_matches_nothing_names_its_field(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sources\.0\.path = .*no folder with a manifest"):
        find_folders(f"{tmp_path}/*", "sources.0.path")
    with pytest.raises(UserError, match=r"sources\.0\.path = .*\*\*x/\*: .*between slashes"):
        find_folders(f"{tmp_path}/**x/*", "sources.0.path")


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?"])
def test_a_folder_that_is_there_is_no_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert find_folders(f"{tmp_path}/{name}", "sources.0.path") == [f"{tmp_path}/{name}"]


def numbers(tiny: Path, workers: int) -> list[tuple[list[str], list[int]]]:
    """Return names and token ids of the first 12 micro-batches of one rank."""
    recipe = load_recipe(tiny)
    plan = MicroBatchPlan(recipe.plan(), 1, 0, {name: c.micro_batch for name, c in recipe.active_objectives.items()})
    batches = load(
        MicroBatches(plan, build_objectives(recipe)), 2, 14, DataConfig(workers=workers), False, ignore_in_worker
    )
    return [(batch.names, batch.token_ids.tolist()) for batch in batches]


@pytest.mark.long
def test_workers_change_nothing(tiny: Path) -> None:
    alone = numbers(tiny, 0)
    assert len(alone) == 12
    assert numbers(tiny, 1) == alone
    assert numbers(tiny, 2) == alone


def test_a_workers_user_error_arrives_as_its_message_alone(tiny: Path) -> None:
    class Broken:
        kind = TEXT

        def batches(self, parts: list[MicroBatch], allocate: Allocate) -> None:
            raise UserError(f"process {os.getpid()} says so")

    recipe = load_recipe(tiny)
    plan = MicroBatchPlan(recipe.plan(), 1, 0, {name: c.micro_batch for name, c in recipe.active_objectives.items()})
    objectives = dict.fromkeys(recipe.active_objectives, Broken())
    batches = load(MicroBatches(plan, objectives), 0, 2, DataConfig(workers=1), False, ignore_in_worker)  # type: ignore[arg-type]
    with pytest.raises(OneRankError, match=r"^process \d+ says so$"):
        next(batches)


def test_hidden_folders_are_no_sources_of_a_pattern(train: Path, tmp_path: Path) -> None:
    for name in ("a", ".b.partial", ".c.old", ".hidden/d"):
        shutil.copytree(train, tmp_path / "data" / name)
    assert find_folders(f"{tmp_path}/data/*", "path") == [f"{tmp_path}/data/a"]
    assert find_folders(f"{tmp_path}/data/**", "path") == [f"{tmp_path}/data/a"]
    assert find_folders(f"{tmp_path}/data/.hidden/*", "path") == [f"{tmp_path}/data/.hidden/d"]
