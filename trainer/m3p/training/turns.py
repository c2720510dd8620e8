"""The turns of a run with their micro-batches, and with what all ranks must know of them.

Ranks tell each other how many terms each task has, which names a loss over the whole turn compares, and what the monitor
adds up. They do so from CPU to CPU, through a process group of its own, in a thread that is one pass ahead of the training:
on many nodes such an exchange takes milliseconds, in which the GPU computes on the pass before.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from m3p.batch import Batch
from m3p.data.order.passes import PassPlan
from m3p.data.order.plan import Turn
from m3p.distributed import Ranks, all_reduce_sum, gather_objects, new_host_group
from m3p.model.flops import NUMBERS, Work
from m3p.objectives.tasks import TASKS
from m3p.objectives.tasks.task import Targets, TurnTask
from m3p.training import hard_negatives
from m3p.training.hard_negatives import TurnCaptions
from m3p.training.watch.seen import Count, Seen, see

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class TurnData:
    """A turn, this rank's micro-batches of it, and what all ranks know of it."""

    turn: Turn
    tasks: Mapping[str, float]
    """Task -> its weight in the loss."""
    batches: Sequence[Batch]
    """On the CPU."""
    counts: Mapping[str, int]
    """Task -> the number of its terms in the turn, over all ranks."""
    targets: Mapping[str, Targets] = field(default_factory=dict)
    """Task over the whole turn -> its targets, of all ranks."""
    captions: TurnCaptions | None = None
    """Those of all ranks, where hard negatives are drawn from them."""


@dataclass(frozen=True)
class PassData:
    """A pass: its turns with their micro-batches, and what every rank saw in them."""

    turns: Sequence[TurnData]
    last: bool
    """Whether it is the last pass of its step."""
    seen: Sequence[Seen]
    """By rank."""


class Exchange:
    """Takes the micro-batches of a pass from the loader, and asks the other ranks about theirs.

    Args:
        tasks: objective -> its tasks and their weights in the loss.
        micro_batches: objective -> micro-batches of this rank in one of its turns.
        count: counts the operations of a micro-batch.
        group: of all ranks, for this class alone, since another thread must not use it too; None: the common one.
    """

    def __init__(
        self,
        tasks: Mapping[str, Mapping[str, float]],
        micro_batches: Mapping[str, int],
        count: Count | None = None,
        group: "ProcessGroup | None" = None,
    ) -> None:
        self._tasks, self._micro_batches, self._count, self._group = tasks, micro_batches, count, group

    def take(self, plan: PassPlan, batches: Iterator[Batch]) -> PassData:
        """Return the pass. Every rank calls it, for the same passes in the same order."""
        mine = [[next(batches) for _ in range(self._micro_batches[turn.objective])] for turn in plan.turns]
        counts = count_terms([self._tasks[turn.objective] for turn in plan.turns], mine, self._group)
        turns = [self._turn(*of_turn) for of_turn in zip(plan.turns, mine, counts, strict=True)]
        objectives = [turn.objective for turn in plan.turns]
        place = plan.step, objectives
        every = gather_objects((place, see(objectives, mine, self._count, plan.last)), self._group)
        assert all(other == place for other, _ in every), f"ranks are at different passes: {[one for one, _ in every]}"
        return PassData(turns, plan.last, [seen for _, seen in every])

    def _turn(self, turn: Turn, batches: Sequence[Batch], counts: Mapping[str, int]) -> TurnData:
        targets = self._targets(counts, batches)
        captions = hard_negatives.find(batches, targets, self._group)
        return TurnData(turn, self._tasks[turn.objective], batches, counts, targets, captions)

    def _targets(self, counts: Mapping[str, int], batches: Sequence[Batch]) -> dict[str, Targets]:
        """Return the targets of a turn, all ranks' together, for each task that compares samples of the whole turn."""
        found = {}
        for name in counts:
            task = TASKS[name]
            if isinstance(task, TurnTask):
                mine = task.turn_targets(counts[name], [b.targets[name] for b in batches if name in b.targets])
                found[name] = {key: all_reduce_sum(tensor, self._group) for key, tensor in mine.items()}
        return found


def count_terms(
    tasks: Sequence[Iterable[str]], batches: Sequence[Sequence[Batch]], group: "ProcessGroup | None" = None
) -> list[dict[str, int]]:
    """Return the global number of terms of each task, turn by turn. Every rank calls it.

    `tasks` and this rank's `batches` of each turn; `group` is as in `distributed.all_reduce_sum`.
    """
    mine = [_terms(task, parts) for names, parts in zip(tasks, batches, strict=True) for task in names]
    total = iter(all_reduce_sum(torch.tensor(mine, dtype=torch.int64), group).tolist())
    return [{task: next(total) for task in names} for names in tasks]


def count_pairs(tasks: Iterable[str], batches: Sequence[Batch], pairs: Sequence[Batch]) -> tuple[dict[str, int], Work]:
    """Return the global number of terms of each task of a turn, and the work of the `pairs` that its training added.

    `batches` and `pairs`: this rank's. Every rank calls it; the sums are made in one collective.
    """
    tasks, added = list(tasks), hard_negatives.work_of(pairs)
    numbers = [getattr(added, name) for name in NUMBERS] + [added.terms.get(task, 0) for task in tasks]
    mine = [*(_terms(task, [*batches, *pairs]) for task in tasks), *map(int, numbers)]
    total = iter(all_reduce_sum(torch.tensor(mine, dtype=torch.int64)).tolist())
    counts = {task: next(total) for task in tasks}
    whole = {name: next(total) for name in NUMBERS}
    return counts, Work(**whole, terms={task: next(total) for task in tasks})


def _terms(task: str, batches: Iterable[Batch]) -> int:
    """Return the number of terms that a task has in these micro-batches."""
    return sum(TASKS[task].count(batch.targets[task]) for batch in batches if task in batch.targets)


def take_ahead(
    plans: Iterator[PassPlan],
    batches: Iterator[Batch],
    exchange: Exchange,
    ranks: Ranks,
) -> Generator[PassData, None, None]:
    """Yield the passes of `plans`; of several ranks, a thread takes the next one while the caller works on this one.

    The thread begins a pass only after the caller was given the one before. So all ranks have begun the same ones when the
    caller ends early, on all ranks after the same step, and closing this generator waits for nobody who does not come.
    """
    if ranks.world_size == 1:  # nobody to wait for: a second pass in memory would be for nothing
        for plan in plans:
            yield exchange.take(plan, batches)
        return
    with ThreadPoolExecutor(1, "exchange") as thread:
        first = next(plans, None)
        coming = None if first is None else thread.submit(exchange.take, first, batches)
        while coming is not None:
            now, following = coming.result(), next(plans, None)
            coming = None if following is None else thread.submit(exchange.take, following, batches)
            yield now


def make_exchange(
    tasks: Mapping[str, Mapping[str, float]],
    micro_batches: Mapping[str, int],
    count: Count | None,
    ranks: Ranks,
    timeout_seconds: float,
) -> Exchange:
    """Return the exchange of a run, which has a process group of its own where there are several ranks. Every rank calls it."""
    group = new_host_group(timeout_seconds) if ranks.world_size > 1 else None
    return Exchange(tasks, micro_batches, count, group)
