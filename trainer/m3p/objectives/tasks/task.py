"""What every task offers."""

from typing import Protocol, runtime_checkable

from torch import Tensor

Targets = dict[str, Tensor]


class Task(Protocol):
    """A loss that is a sum over terms."""

    name: str
    over_turn: bool
    """True where the loss compares samples of the whole turn (contrastive); such a task is a `TurnTask`."""

    def count(self, targets: Targets) -> int:
        """Return the number of terms in a micro-batch."""

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """Return the sum of the terms, float32; `output` is what the task's head gave."""


@runtime_checkable
class TurnTask(Task, Protocol):
    """A task whose loss compares samples of the whole turn, whatever the ranks and micro-batches (gradient_cache.py).

    Its head gives `views` features of each term, [views * terms, size]. In a micro-batch, `targets["rows"]` [terms] are the
    places of its terms in the turn.
    """

    def turn_targets(self, terms: int, parts: list[Targets]) -> Targets:
        """Lay the targets of this rank's micro-batches in the rows of the turn, [terms]; other ranks' rows are zero."""
