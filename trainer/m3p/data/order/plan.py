"""The plan of turns: which objective a turn serves and which positions it takes, from the turn's number alone.

No rank, worker, clock or history enters, so all ranks agree without a word between them and resuming needs one
integer. Ranks enter only in `split` and `balance`, which say who of them forwards which part of a turn.
"""

import heapq
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from m3p.data.order.mixture import MixtureOrder
from m3p.errors import UserError

LONGEST_CYCLE = 256
"""Turns. A longer round is a slip (weights such as 0.333), not a wish for steps of thousands of batches."""


Costs = Callable[[range], NDArray[np.float64]]


@dataclass(frozen=True)
class Stream:
    """One objective, as far as the plan cares."""

    name: str
    weight: str | int | float
    """Share of the turns, above 0, in any unit."""
    batch_size: int
    """Samples of one turn, over all ranks."""


@dataclass(frozen=True)
class Turn:
    """One entry of the round-robin: one global batch of one objective."""

    number: int
    objective: str
    index: int
    """How many earlier turns served this objective."""
    positions: range
    """Positions of the batch in the endless order of the objective."""


@dataclass(frozen=True)
class MicroBatch:
    """What one rank forwards at once."""

    turn: Turn
    part: int
    """Number of this micro-batch among those of the turn on this rank."""
    positions: Sequence[int]
    """Rising. Empty when this rank has nothing left of the turn; it still takes part in the pass."""


class Plan:
    """Turns and steps of a run.

    Args:
        streams: the objectives in use, each with a weight above 0.
        turns_per_step: turns of one optimizer step; None: one whole cycle of the round-robin.

    Raises:
        UserError: `turns_per_step` is None and the weights make a cycle of more than `LONGEST_CYCLE` turns.
    """

    def __init__(self, streams: Sequence[Stream], turns_per_step: int | None) -> None:
        assert len({stream.name for stream in streams}) == len(streams), "names of objectives differ"
        assert turns_per_step is None or turns_per_step >= 1, turns_per_step
        assert all(stream.batch_size >= 1 for stream in streams), streams
        self.streams = tuple(streams)
        self._shares = MixtureOrder([stream.weight for stream in streams])
        self.cycle = self._shares.block
        """Turns after which the round-robin repeats."""
        if turns_per_step is None and self.cycle > LONGEST_CYCLE:
            weights = ", ".join(f"{stream.name} {stream.weight}" for stream in streams)
            raise UserError(
                f"objectives: the weights {weights} make a cycle of {self.cycle} turns, and a step is one whole cycle of "
                f"at most {LONGEST_CYCLE}. Write weights in small whole numbers (2, 1, 1), or set run.turns_per_step."
            )
        self.turns_per_step = turns_per_step or self.cycle

    def turn(self, number: int) -> Turn:
        """Return turn `number`, 0 or more."""
        source, index = self._shares.place(number)
        stream = self.streams[source]
        positions = range(index * stream.batch_size, (index + 1) * stream.batch_size)
        return Turn(number, stream.name, index, positions)

    def turns(self, step: int) -> list[Turn]:
        """Return the turns of optimizer step `step`, 0 or more."""
        first = step * self.turns_per_step
        return [self.turn(number) for number in range(first, first + self.turns_per_step)]


def split(positions: range, ranks: int, rank: int, micro_batch: int) -> list[range]:
    """Return the micro-batches of `rank`: consecutive ranges that are its part of a turn's `positions`.

    Parts of ranks differ by at most one position, and so do the micro-batches of a rank. Every rank gets the same
    number of micro-batches, of at most `micro_batch` positions; the last ones are empty where a part is too small.
    """
    assert 0 <= rank < ranks, (rank, ranks)
    count = micro_batches(len(positions), ranks, micro_batch)
    mine = _part(positions, ranks, rank)
    return [_part(mine, count, number) for number in range(count)]


def balance(positions: range, costs: NDArray[np.float64], ranks: int, micro_batch: int) -> list[list[Sequence[int]]]:
    """Return every rank's micro-batches of a turn, of the sizes that `split` gives, with sums of `costs` [N] nearly alike.

    The dearest sample goes first, each to the rank that has the least so far (Graham's LPT rule, 1969); then so in a rank.
    Where all cost the same, positions stay side by side: a pair's mismatched partner is its neighbour, read once then.
    """
    if len(costs) < 2 or costs.min() == costs.max():
        return [list(split(positions, ranks, rank, micro_batch)) for rank in range(ranks)]
    found: list[list[Sequence[int]]] = []
    shapes = [[len(part) for part in split(positions, ranks, rank, micro_batch)] for rank in range(ranks)]
    of_ranks = _deal(range(len(costs)), costs, [sum(shape) for shape in shapes])
    for mine, shape in zip(of_ranks, shapes, strict=True):
        parts = _deal(mine, costs, shape)
        found.append([tuple(positions[index] for index in sorted(part)) for part in parts])
    return found


def _deal(indices: Sequence[int], costs: NDArray[np.float64], rooms: list[int]) -> list[list[int]]:
    """Share `indices` out to as many hands as `rooms`, each taking so many, with sums of `costs` nearly alike."""
    hands: list[list[int]] = [[] for _ in rooms]
    heap = [(0.0, hand) for hand, room in enumerate(rooms) if room]
    for index in sorted(indices, key=lambda index: (-costs[index], index)):
        so_far, hand = heap[0]
        hands[hand].append(index)
        if len(hands[hand]) < rooms[hand]:
            heapq.heapreplace(heap, (so_far + float(costs[index]), hand))
        else:
            heapq.heappop(heap)
    return hands


def micro_batches(batch_size: int, ranks: int, micro_batch: int) -> int:
    """Return how many micro-batches every rank runs for a turn of `batch_size`."""
    assert ranks >= 1, ranks
    assert micro_batch >= 1, micro_batch
    largest = -(-batch_size // ranks)
    return -(-largest // micro_batch)


def _part(positions: range, parts: int, part: int) -> range:
    """Return one of `parts` consecutive parts, of which the first ones are one longer where it does not divide."""
    size, longer = divmod(len(positions), parts)
    first = part * size + min(part, longer)
    return positions[first : first + size + (part < longer)]


class MicroBatchPlan:
    """The micro-batches of one rank, numbered through the whole run: what the loader is a function of.

    Args:
        plan: the turns.
        ranks, rank: how many there are, and which one this is.
        micro_batch: most samples of a micro-batch, for each objective.
        costs: gives, for each objective, the costs [N] of the samples at a turn's positions [N], the same on every rank;
            without it all cost the same.
    """

    def __init__(
        self,
        plan: Plan,
        ranks: int,
        rank: int,
        micro_batch: Mapping[str, int],
        costs: Mapping[str, Costs] | None = None,
    ) -> None:
        assert 0 <= rank < ranks, (rank, ranks)
        self._plan, self._ranks, self._rank = plan, ranks, rank
        self._micro_batch, self._costs = micro_batch, costs or {}
        self._balanced: tuple[int, list[Sequence[int]]] = (-1, [])
        """Number and micro-batches of the turn that was balanced last."""
        self.parts = {s.name: micro_batches(s.batch_size, ranks, micro_batch[s.name]) for s in plan.streams}
        """Micro-batches of one turn of each objective, the same on every rank."""
        counts = [self.parts[plan.turn(number).objective] for number in range(plan.cycle)]
        self._firsts = [0, *accumulate(counts)]
        self._per_cycle = self._firsts[-1]

    def locate(self, number: int) -> MicroBatch:
        """Return micro-batch `number`, 0 or more; it costs the same for any number."""
        assert number >= 0, number
        cycle, offset = divmod(number, self._per_cycle)
        place = bisect_right(self._firsts, offset) - 1
        turn = self._plan.turn(cycle * self._plan.cycle + place)
        part = offset - self._firsts[place]
        return MicroBatch(turn, part, self._of_turn(turn)[part])

    def _of_turn(self, turn: Turn) -> Sequence[Sequence[int]]:
        limit = self._micro_batch[turn.objective]
        if turn.objective not in self._costs or self._ranks * self.parts[turn.objective] == 1:
            return split(turn.positions, self._ranks, self._rank, limit)
        if self._balanced[0] != turn.number:
            costs = self._costs[turn.objective](turn.positions)
            self._balanced = (turn.number, balance(turn.positions, costs, self._ranks, limit)[self._rank])
        return self._balanced[1]

    def first_of_step(self, step: int) -> int:
        """Return the number of the first micro-batch of optimizer step `step`, 0 or more."""
        cycle, place = divmod(step * self._plan.turns_per_step, self._plan.cycle)
        return cycle * self._per_cycle + self._firsts[place]
