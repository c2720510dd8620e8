"""Of trainer/m3p/data/loader/loader.py: what it costs in memory, and that ways of loading change nothing."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from m3p.data.loader.loader import DataConfig, MicroBatches, load
from m3p.data.order.plan import MicroBatchPlan
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives
from m3p.training.stop import ignore_in_worker
from tests.batches import sequences
from tests.launch import ROOT
from tests.tiny import make_tiny

MEMORY = """
import gc, itertools, sys
from pathlib import Path
import psutil
from tests.data.loader.test_loader import batches
found = batches(Path(sys.argv[1]), int(sys.argv[2]), 0, 10**9)
def resident():
    gc.collect()
    me = psutil.Process()
    return [process.memory_info().rss - process.memory_info().shared for process in (me, *me.children())]
for _ in itertools.islice(found, 500): pass
before = resident()
for _ in itertools.islice(found, 4000): pass
print(*(after - former for after, former in zip(resident(), before, strict=True)))
"""


def batches(recipe_path: Path, workers: int, first: int, last: int, **settings: int):  # type: ignore[no-untyped-def]
    """Load micro-batches of a lone rank."""
    recipe = load_recipe(recipe_path)
    sizes = {name: config.micro_batch for name, config in recipe.active_objectives.items()}
    plan = MicroBatchPlan(recipe.plan(), 1, 0, sizes)
    config = DataConfig(workers=workers, **settings)
    return load(MicroBatches(plan, build_objectives(recipe)), first, last, config, False, ignore_in_worker)


@pytest.mark.program
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_stays_where_it_is(tiny: Path, workers: int) -> None:
    """9,000 samples of tiny data here; a million of real size: benchmarks/loader_memory.py."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tiny), str(workers)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    grown = [int(number) for number in done.stdout.splitlines()[-1].split()]
    assert len(grown) == 1 + workers
    assert max(grown) < 4e6, grown


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("patches"), "patches")


@pytest.mark.long
@pytest.mark.parametrize(("workers", "threads", "prefetch"), [(0, 1, 1), (0, 3, 4), (1, 2, 4), (2, 1, 1), (3, 2, 2)])
def test_ways_of_loading_change_nothing(patches: Path, workers: int, threads: int, prefetch: int) -> None:
    recipe = load_recipe(patches)
    plan = MicroBatchPlan(recipe.plan(), 1, 0, {n: c.micro_batch for n, c in recipe.active_objectives.items()})
    made = MicroBatches(plan, build_objectives(recipe))
    wanted = [next(made.make(range(number, number + 1))) for number in range(3, 15)]
    # Kept, so that buffers of shared memory run out too.
    found = list(batches(patches, workers, 3, 15, threads=threads, prefetch=prefetch))
    for one, other in zip(found, wanted, strict=True):
        assert one.names == other.names
        assert sequences(one) == sequences(other)
        assert one.visual_features.equal(other.visual_features)
        assert one.visual_boxes.equal(other.visual_boxes)
        assert one.visual_rows.equal(other.visual_rows)
        assert one.visual_slots.equal(other.visual_slots)
        for task, targets in other.targets.items():
            assert all(one.targets[task][name].equal(tensor) for name, tensor in targets.items())


@pytest.mark.long
@pytest.mark.parametrize(("workers", "prefetch"), [(0, 4), (1, 1), (2, 40)])
def test_text_alone_comes_in_blocks_that_change_nothing(tiny: Path, workers: int, prefetch: int) -> None:
    recipe = load_recipe(
        tiny, ["objectives.image_caption.weight=0", "objectives.code_switched.weight=0", "evaluation={}"]
    )
    sizes = {name: config.micro_batch for name, config in recipe.active_objectives.items()}
    made = MicroBatches(MicroBatchPlan(recipe.plan(), 1, 0, sizes), build_objectives(recipe))
    assert made.block > 1
    wanted = [next(made.make(range(number, number + 1))) for number in range(3, 50)]
    config = DataConfig(workers=workers, prefetch=prefetch)
    found = list(load(made, 3, 50, config, False, ignore_in_worker))
    assert [batch.names for batch in found] == [batch.names for batch in wanted]
    assert [sequences(batch) for batch in found] == [sequences(batch) for batch in wanted]


def test_who_stops_in_the_middle_leaves_nothing_behind(tiny: Path) -> None:
    for workers in (0, 2):
        found = batches(tiny, workers, 0, 1000)
        assert len(list(itertools.islice(found, 3))) == 3
        found.close()
