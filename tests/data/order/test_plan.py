from collections.abc import Sequence
from itertools import chain
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from m3p.data.order.plan import LONGEST_CYCLE, MicroBatchPlan, Plan, Stream, balance, split
from m3p.errors import UserError


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    weights = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    streams = [Stream(f"objective {i}", weight, draw(st.integers(1, 40))) for i, weight in enumerate(weights)]
    return Plan(streams, draw(st.none() | st.integers(1, 17)))


def test_a_step_is_one_cycle_of_the_round_robin() -> None:
    plan = Plan([Stream("text", "0.5", 8), Stream("captions", 0.25, 4), Stream("switched", 0.25, 4)], None)
    assert (plan.cycle, plan.turns_per_step) == (4, 4)
    assert [turn.objective for turn in plan.turns(3)] == ["text", "captions", "switched", "text"]
    assert [turn.number for turn in plan.turns(3)] == [12, 13, 14, 15]
    assert plan.turn(15).index == 7
    assert plan.turn(15).positions == range(56, 64)


@given(plan=plans())
@settings(max_examples=100, deadline=None)
def test_turns_take_every_position_of_an_objective_once_and_in_order(plan: Plan) -> None:
    turns = [turn for step in range(6) for turn in plan.turns(step)]
    assert [turn.number for turn in turns] == list(range(6 * plan.turns_per_step))
    for stream in plan.streams:
        mine = [turn for turn in turns if turn.objective == stream.name]
        assert [turn.index for turn in mine] == list(range(len(mine)))
        taken = list(chain.from_iterable(turn.positions for turn in mine))
        assert taken == list(range(len(mine) * stream.batch_size))


@given(plan=plans())
@settings(max_examples=100, deadline=None)
def test_objectives_alternate_smoothly(plan: Plan) -> None:
    total = sum(int(stream.weight) for stream in plan.streams)
    for stream in plan.streams:
        seen = 0
        for number in range(2 * plan.cycle):
            seen += plan.turn(number).objective == stream.name
            assert abs(seen - (number + 1) * int(stream.weight) / total) < 2.1


@pytest.mark.long
@given(first=st.integers(0, 2**40), size=st.integers(1, 300), ranks=st.integers(1, 70), micro=st.integers(1, 50))
@settings(max_examples=300, deadline=None)
def test_ranks_and_micro_batches_share_a_turn_out(first: int, size: int, ranks: int, micro: int) -> None:
    positions = range(first, first + size)
    of_rank = [split(positions, ranks, rank, micro) for rank in range(ranks)]
    assert list(chain.from_iterable(chain.from_iterable(of_rank))) == list(positions)
    assert {len(parts) for parts in of_rank} == {ceil(ceil(size / ranks) / micro)}
    sizes = [sum(len(part) for part in parts) for parts in of_rank]
    assert max(sizes) - min(sizes) <= 1
    for parts in of_rank:
        lengths = [len(part) for part in parts]
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] - lengths[-1] <= 1
        assert lengths[0] <= micro


def test_more_ranks_than_samples_leave_empty_micro_batches() -> None:
    assert [split(range(10, 13), 5, rank, 4) for rank in range(5)] == [
        [range(10, 11)],
        [range(11, 12)],
        [range(12, 13)],
        [range(13, 13)],
        [range(13, 13)],
    ]


@pytest.mark.long
@given(data=st.data(), plan=plans(), ranks=st.integers(1, 9), far=st.integers(0, 10**9))
@settings(max_examples=100, deadline=None)
def test_micro_batches_are_numbered_as_the_turns_go(data: st.DataObject, plan: Plan, ranks: int, far: int) -> None:
    micro = {stream.name: data.draw(st.integers(1, 12)) for stream in plan.streams}
    on_ranks = [MicroBatchPlan(plan, ranks, rank, micro) for rank in range(ranks)]
    for step in (0, 1, 2, far):
        numbers = range(on_ranks[0].first_of_step(step), on_ranks[0].first_of_step(step + 1))
        for rank, micro_batches in enumerate(on_ranks):
            found = [micro_batches.locate(number) for number in numbers]
            expected = [
                (turn, part, positions)
                for turn in plan.turns(step)
                for part, positions in enumerate(split(turn.positions, ranks, rank, micro[turn.objective]))
            ]
            assert [(m.turn, m.part, m.positions) for m in found] == expected
            assert micro_batches.first_of_step(step) == numbers.start


def test_a_round_of_thousands_of_turns_is_refused_unless_a_step_is_shorter() -> None:
    streams = [Stream("text", 0.3333, 8), Stream("captions", 0.6667, 4)]
    with pytest.raises(UserError, match=r"text 0\.3333, captions 0\.6667 make a cycle of 10000 turns"):
        Plan(streams, None)
    assert Plan(streams, LONGEST_CYCLE).turns_per_step == LONGEST_CYCLE


@st.composite
def turns(draw: st.DrawFn) -> tuple[range, NDArray[np.float64], int, int]:
    size, first = draw(st.integers(1, 200)), draw(st.integers(0, 2**40))
    costs = np.array(draw(st.lists(st.integers(1, 60), min_size=size, max_size=size)), float)
    return range(first, first + size), costs, draw(st.integers(1, 20)), draw(st.integers(1, 30))


@pytest.mark.long
@given(turn=turns())
@settings(max_examples=200, deadline=None)
def test_balanced_micro_batches_hold_every_position_once_in_the_sizes_of_the_split(
    turn: tuple[range, NDArray[np.float64], int, int],
) -> None:
    positions, costs, ranks, micro = turn
    found = balance(positions, costs, ranks, micro)
    assert sorted(chain.from_iterable(chain.from_iterable(found))) == list(positions)
    assert all(list(part) == sorted(part) for of_rank in found for part in of_rank)
    assert [[len(part) for part in of_rank] for of_rank in found] == [
        [len(part) for part in split(positions, ranks, rank, micro)] for rank in range(ranks)
    ]


@pytest.mark.long
@given(turn=turns())
@settings(max_examples=200, deadline=None)
def test_equal_costs_leave_neighbours_together(turn: tuple[range, NDArray[np.float64], int, int]) -> None:
    positions, costs, ranks, micro = turn
    assert balance(positions, np.full(len(costs), 7.0), ranks, micro) == [
        split(positions, ranks, rank, micro) for rank in range(ranks)
    ]


@pytest.mark.parametrize(("ranks", "micro"), [(8, 16), (64, 16), (8, 4)])
def test_ranks_wait_little_for_each_other(ranks: int, micro: int) -> None:
    rng = np.random.default_rng(0)
    waits: dict[str, list[float]] = {"split": [], "balance": []}
    for _ in range(20):
        costs = np.minimum(rng.lognormal(3, 0.7, ranks * 16), 128)
        positions = range(len(costs))
        parts: dict[str, Sequence[Sequence[Sequence[int]]]] = {
            "split": [split(positions, ranks, rank, micro) for rank in range(ranks)],
            "balance": balance(positions, costs, ranks, micro),
        }
        for name, of_ranks in parts.items():
            loads = [float(sum(costs[place] for part in of_rank for place in part)) for of_rank in of_ranks]
            waits[name].append(max(loads) / (sum(loads) / ranks) - 1)
    assert sum(waits["split"]) / 20 > 0.15
    assert sum(waits["balance"]) / 20 < 0.02


def test_one_rank_takes_all_of_a_turn_without_asking_for_costs() -> None:
    plan = Plan([Stream("text", 1, 6)], None)

    def costs(positions: range) -> NDArray[np.float64]:
        raise AssertionError("index files are opened for nothing")

    assert MicroBatchPlan(plan, 1, 0, {"text": 6}, {"text": costs}).locate(1).positions == range(6, 12)


def test_every_rank_takes_its_part_of_the_balanced_turn() -> None:
    plan = Plan([Stream("text", 1, 6)], None)

    def costs(positions: range) -> NDArray[np.float64]:
        return np.array(positions, np.float64)

    ranks = [MicroBatchPlan(plan, 3, rank, {"text": 1}, {"text": costs}) for rank in range(3)]
    wanted = balance(range(6, 12), costs(range(6, 12)), 3, 1)
    assert wanted == [[(11,), (6,)], [(10,), (7,)], [(9,), (8,)]]
    for number in (3, 0, 2):  # in any order
        found = [micro_batches.locate(number).positions for micro_batches in ranks]
        if number >= 2:
            assert found == [of_rank[number - 2] for of_rank in wanted]
