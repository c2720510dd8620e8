"""Any number of ranks, any number of stops: the same samples, masks and switches, every sample once an epoch."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3p.data.order.mixture import MixtureOrder
from m3p.data.order.plan import MicroBatchPlan, Plan, Stream
from m3p.data.order.shuffle import Place, SourceOrder
from m3p.keys import key
from m3p.objectives.objective import Objective
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.training.build_objectives import build_objectives
from tests.batches import sequences
from tests.launch import ROOT

Seen = list[tuple[str, int, Place]]


class Data:
    """Objectives with sources of shards, as the trainer orders them, without the bytes."""

    def __init__(self, objectives: dict[str, list[list[int]]], window: int, weights: list[int]) -> None:
        self.mixes = {
            name: (
                MixtureOrder([number + 1 for number in range(len(sources))]),
                [SourceOrder(counts, window, key(name, number)) for number, counts in enumerate(sources)],
            )
            for name, sources in objectives.items()
        }
        streams = [Stream(name, weight, 3 + 2 * weight) for name, weight in zip(objectives, weights, strict=True)]
        self.plan = Plan(streams, None)

    def run(self, step: int, ranks: int, micro: int) -> Seen:
        """Return what the ranks of one start see in a step, in the order of positions within each turn."""
        plans = [MicroBatchPlan(self.plan, ranks, rank, dict.fromkeys(self.mixes, micro)) for rank in range(ranks)]
        found: list[tuple[int, str, int, int, Place]] = []
        for plan in plans:
            for number in range(plan.first_of_step(step), plan.first_of_step(step + 1)):
                part = plan.locate(number)
                shares, orders = self.mixes[part.turn.objective]
                sources, indices = shares.locate(np.array(part.positions, np.int64))
                for position, source, index in zip(part.positions, sources.tolist(), indices.tolist(), strict=True):
                    place = orders[source].place(index)
                    found.append((part.turn.number, part.turn.objective, position, source, place))
        return [(name, source, place) for _, name, _, source, place in sorted(found)]


Sources = st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any), min_size=1, max_size=3)


@pytest.mark.long
@given(
    objectives=st.lists(Sources, min_size=1, max_size=3),
    window=st.integers(1, 4),
    starts=st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from([1, 2, 3, 5, 8]), st.integers(1, 9)), min_size=1, max_size=6
    ),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_visits_every_sample_once_however_often_the_run_stops_and_on_however_many_ranks_it_goes_on(
    objectives: list[list[list[int]]], window: int, starts: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    weights = [data.draw(st.integers(1, 3)) for _ in objectives]
    named = {f"objective {number}": sources for number, sources in enumerate(objectives)}
    made = Data(named, window, weights)
    seen: Seen = []
    step = 0
    for steps, ranks, micro in starts:  # every start is another process: nothing but the number of the step goes on
        again = Data(named, window, weights)
        for _ in range(steps):
            seen += again.run(step, ranks, micro)
            step += 1
    assert seen == [entry for number in range(step) for entry in made.run(number, 1, 1_000)]
    for name, sources in named.items():
        for number, counts in enumerate(sources):
            mine = [place for objective, source, place in seen if (objective, source) == (name, number)]
            total = sum(counts)
            for epoch in range(len(mine) // total):
                visited = Counter((place.shard, place.sample) for place in mine[epoch * total : (epoch + 1) * total])
                wanted = {(shard, sample): 1 for shard, count in enumerate(counts) for sample in range(count)}
                assert visited == wanted


def turn_on(ranks: int, recipe: Recipe, objectives: dict[str, Objective], step: int) -> dict[str, Any]:
    """Return names, words and regions of the turns of a step, sorted, as so many ranks see them."""
    sizes = {name: config.micro_batch for name, config in recipe.active_objectives.items()}
    whole: dict[str, Any] = {name: {"names": [], "words": [], "regions": []} for name in objectives}
    for rank in range(ranks):
        costs = {name: objective.costs for name, objective in objectives.items()}
        plan = MicroBatchPlan(recipe.plan(), ranks, rank, sizes, costs)
        for number in range(plan.first_of_step(step), plan.first_of_step(step + 1)):
            place = plan.locate(number)
            batch = objectives[place.turn.objective].batch(place.turn.positions, place.positions)
            if batch.samples:
                mine = whole[place.turn.objective]
                mine["names"] += batch.names
                mine["words"] += sequences(batch)
                mine["regions"] += batch.visual_features[batch.visual_rows].tolist()
    return {name: {kind: sorted(found) for kind, found in of_turn.items()} for name, of_turn in whole.items()}


@pytest.mark.parametrize("step", [0, 7])
def test_1_2_3_and_5_ranks_train_on_identical_turns(tiny: Path, step: int) -> None:
    recipe = load_recipe(tiny)
    objectives = build_objectives(recipe)
    alone = turn_on(1, recipe, objectives, step)
    assert all(turn["names"] for turn in alone.values())
    for ranks in (2, 3, 5):
        assert turn_on(ranks, recipe, objectives, step) == alone


def start(tiny: Path, ranks: int, rank: int, steps: range, out: Path, pause: float = 0.0) -> "subprocess.Popen[bytes]":
    numbers = [str(number) for number in (ranks, rank, steps.start, steps.stop)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.data.loading", str(tiny), *numbers, str(out), str(pause)], cwd=ROOT
    )


def read(paths: list[Path]) -> dict[int, tuple[int, list[str]]]:
    """Return step -> (sum of the packed words, names in order) of all ranks together; a line cut by a kill is left out."""
    found: dict[int, tuple[int, list[str]]] = {}
    for path in paths:
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                step, words, names = line.rstrip("\n").split("\t")
                before = found.get(int(step), (0, []))
                found[int(step)] = (before[0] + int(words), sorted([*before[1], *names.split(",")]))
    return found


@pytest.mark.program
def test_two_ranks_killed_in_mid_epoch_and_resumed_on_one_see_the_same_remaining_samples(
    tiny: Path, tmp_path: Path
) -> None:
    whole = start(tiny, 1, 0, range(12), tmp_path / "whole")
    killed = [start(tiny, 2, rank, range(12), tmp_path / f"rank {rank}", pause=0.3) for rank in range(2)]
    paths = [tmp_path / f"rank {rank}" for rank in range(2)]
    deadline = time.monotonic() + 60
    while not all(path.exists() and path.read_text().count("\n") >= 3 for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for process in killed:
        process.kill()
    for process in killed:
        process.wait()
    assert whole.wait(timeout=60) == 0
    reference = read([tmp_path / "whole"])
    done = read(paths)
    both = min(path.read_text().count("\n") for path in paths)
    assert 3 <= both < 12
    assert [done[step] for step in range(both)] == [reference[step] for step in range(both)]
    assert start(tiny, 1, 0, range(both, 12), tmp_path / "resumed").wait(timeout=60) == 0
    assert read([tmp_path / "resumed"]) == {step: reference[step] for step in range(both, 12)}
