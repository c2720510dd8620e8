"""What every task offers."""

from typing import Protocol

from torch import Tensor

Targets = dict[str, Tensor]


class Task(Protocol):
    """A loss that is a sum over terms."""

    name: str
    over_turn: bool
    """True where the loss needs the features of the whole turn (contrastive), whatever the ranks and micro-batches."""

    def count(self, targets: Targets) -> int:
        """Return the number of terms in a micro-batch."""

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """Return the sum of the terms, float32; `output` is what the task's head gave."""
