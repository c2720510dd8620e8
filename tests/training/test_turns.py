"""The thread that is one pass ahead."""

import itertools
import threading
from collections.abc import Iterator

import pytest

from m3p.batch import Batch
from m3p.data.order.passes import Passes, PassPlan
from m3p.data.order.plan import Plan, Stream
from m3p.distributed import Ranks
from m3p.packing import Packer
from m3p.training.turns import Exchange, take_ahead
from tests.training.fake_engine import CPU

PLAN = Plan([Stream("text", 2, 6), Stream("pairs", 1, 6)], None)
TASKS = {"text": {"masked_words": 1.0}, "pairs": {"matching": 1.0}}


def batches(taken: list[tuple[int, str]]) -> Iterator[Batch]:
    """Yield micro-batches that are named by their number; note in `taken` who takes each."""
    for number in itertools.count():
        taken.append((number, threading.current_thread().name))
        batch = Packer(1).finish(0)
        batch.names = [f"s{number}"]
        yield batch


def plans(steps: int) -> Iterator[PassPlan]:
    return (one for number in range(1, steps + 1) for one in Passes(PLAN).of_step(number))


@pytest.mark.parametrize("ranks", [1, 2])
def test_passes_come_in_order_one_ahead_with_several_ranks(ranks: int, alone: None) -> None:
    taken: list[tuple[int, str]] = []
    exchange = Exchange(TASKS, {"text": 2, "pairs": 1})
    passes = take_ahead(plans(2), batches(taken), exchange, Ranks(0, 0, ranks, CPU, "python"))
    first = next(passes)
    assert [batch.names for batch in first.turns[0].batches] == [["s0"], ["s1"]]
    second = next(passes)
    assert second.turns[0].turn.objective == "pairs"
    assert second.turns[0].counts == {"matching": 0}
    rest = list(passes)
    names = [batch.names[0] for one in [first, second, *rest] for turn in one.turns for batch in turn.batches]
    assert names == [f"s{number}" for number in range(10)]
    assert [one.last for one in [first, second, *rest]] == [False, False, True] * 2
    assert {name.partition("_")[0] for _, name in taken} == {"MainThread" if ranks == 1 else "exchange"}


def test_ending_early_waits_for_the_pass_that_has_begun_and_begins_no_other(alone: None) -> None:
    taken: list[tuple[int, str]] = []
    passes = take_ahead(
        plans(9), batches(taken), Exchange(TASKS, {"text": 2, "pairs": 1}), Ranks(0, 0, 2, CPU, "python")
    )
    next(passes)
    passes.close()
    assert [number for number, _ in taken] == [0, 1, 2]  # the first pass and the one after it
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("exchange")]


def test_what_the_loader_raises_comes_where_its_pass_is_asked_for(alone: None) -> None:
    def broken() -> Iterator[Batch]:
        yield from itertools.islice(batches([]), 2)
        raise OSError("a shard is gone")

    passes = take_ahead(plans(1), broken(), Exchange(TASKS, {"text": 2, "pairs": 1}), Ranks(0, 0, 2, CPU, "python"))
    next(passes)
    with pytest.raises(OSError, match="a shard is gone"):
        next(passes)
