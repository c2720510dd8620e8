"""The losses of one optimizer step: sums and counts of its turns, and the figures that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from m3p.distributed import all_reduce_sum
from m3p.model.flops import Work


class Figures(NamedTuple):
    """The losses of a step over all ranks: the same numbers on every rank."""

    tasks: dict[str, float]
    """Mean loss of each task over the step's terms, by "OBJECTIVE/TASK"; 0 where it met no term."""
    loss: float
    """What the step minimised, times the number of its objectives: see `StepLosses.figures`."""


@dataclass
class TurnLosses:
    """Loss sums and counts of one turn."""

    objective: str
    weights: Mapping[str, float]
    """Task -> its weight in the loss."""
    counts: Mapping[str, int]
    """Task -> the number of its terms in the turn, over all ranks."""
    sums: dict[str, Tensor]
    """Task -> this rank's part of the sum of its terms, on the device: reading it early would wait for the GPU."""
    added: Work = field(default_factory=Work)
    """The work of pairs that training added to those of the loader (hard negatives), over all ranks."""

    def add(self, task: str, part: Tensor) -> None:
        """Add this rank's part of the sum of a task, such as that of a micro-batch."""
        self.sums[task] = self.sums[task] + part


@dataclass
class StepLosses:
    """The losses of a step, turn by turn."""

    turns: list[TurnLosses] = field(default_factory=list)
    micro_batches: list[Tensor] = field(default_factory=list)
    """For each micro-batch of this rank, a number that is finite if its losses are."""
    _totals: Tensor | None = None
    """What `reduce` returned."""

    def begin(
        self, objective: str, weights: Mapping[str, float], counts: Mapping[str, int], device: torch.device
    ) -> TurnLosses:
        """Open the next turn of the step. `counts` holds the same tasks as `weights`, in one order on all ranks."""
        sums = {task: torch.zeros((), device=device) for task in counts}
        self.turns.append(TurnLosses(objective, weights, counts, sums))
        return self.turns[-1]

    def reduce(self) -> Tensor:
        """Return the sums of all tasks over all ranks, float32 on the device, turn by turn.

        The first call is a collective, which every rank makes after the step's last forward; nobody waits for its result yet.
        """
        if self._totals is None:
            parts = [part for turn in self.turns for part in turn.sums.values()]
            self._totals = all_reduce_sum(torch.stack(parts)) if parts else torch.zeros(0)
        return self._totals

    def accepted(self, ceiling: float | None) -> Tensor:
        """Say on the device, as one bool, whether all sums are finite and the step's loss is not above `ceiling`.

        It computes the loss as `figures` does, number by number, so that both find the same.
        """
        totals = self.reduce()
        accepted = totals.isfinite().all()
        if ceiling is None or not len(totals):
            return accepted
        counts, factors = [], []
        for turn in self.turns:
            counts += [float(max(count, 1)) for count in turn.counts.values()]
            factors += [self._share() * turn.weights[task] for task in turn.counts]
        on_gpu = totals.is_cuda
        numbers = torch.tensor([counts, factors], dtype=torch.float64, pin_memory=on_gpu)
        numbers = numbers.to(totals.device, non_blocking=True)
        # One after the other: a sum of torch's adds in an order of its own.
        loss = totals.new_zeros((), dtype=torch.float64)
        for part in numbers[1] * (totals.double() / numbers[0]):
            loss = loss + part
        return accepted & (loss <= ceiling)

    def figures(self) -> Figures:
        """Return the losses over all ranks, and wait for them. Every rank calls it, as it does `reduce`.

        A step minimises the mean over its turns of each turn's weighted sum of task losses, so an objective counts by its
        share of the turns. `Figures.loss` is that mean times the number of objectives in the step: a constant, with which
        the losses of objectives that have equally many turns simply add up.
        """
        totals = iter(self.reduce().tolist())
        share = self._share()
        sums, loss = dict[str, float](), 0.0
        for turn in self.turns:
            for task, count in turn.counts.items():
                total, name = next(totals), f"{turn.objective}/{task}"
                sums[name] = sums.get(name, 0.0) + total
                loss += share * turn.weights[task] * (total / max(count, 1))
        counts = self.counts()
        return Figures({name: total / max(counts[name], 1) for name, total in sums.items()}, loss)

    def _share(self) -> float:
        return len({turn.objective for turn in self.turns}) / max(len(self.turns), 1)

    def counts(self) -> dict[str, int]:
        """Return the number of terms of each task in the step, over all ranks, by "OBJECTIVE/TASK"."""
        found: dict[str, int] = {}
        for turn in self.turns:
            for task, count in turn.counts.items():
                found[f"{turn.objective}/{task}"] = found.get(f"{turn.objective}/{task}", 0) + count
        return found

    def added(self) -> Work:
        """Return the work of the pairs that training added in the step, over all ranks."""
        found = Work()
        for turn in self.turns:
            found += turn.added
        return found

    def met(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return `means` without the tasks that met no term in the step: the mean of nothing is no figure."""
        counts = self.counts()
        return {name: mean for name, mean in means.items() if counts[name]}
