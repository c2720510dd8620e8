"""What the training loop asks of an engine: the library that computes gradients over ranks and updates the weights.

`training/deepspeed/` is the one there is. Another one (FSDP, a plain loop) implements this protocol, which mentions no library.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from m3p.checkpoints.fragment import Fragment, Progress
from m3p.training.losses import StepLosses
from m3p.training.turns import TurnData


@dataclass(frozen=True)
class Update:
    """How an optimizer step ended."""

    rate: float
    """Learning rate of the encoder."""
    norm: Tensor | float
    """Norm of the whole gradient before clipping; NaN or infinite where a number in it is. On the device it is not read yet."""
    made: bool
    """Whether the weights were updated. They are not where a gradient of any rank is not finite."""


class Engine(Protocol):
    """Trains one network. Every rank calls every method, in the same order."""

    precision: torch.dtype
    """Number format of the network."""

    def train_mode(self) -> None:
        """Switch the network to training, with dropout."""

    def turns(self, turns: Sequence[TurnData], losses: StepLosses, last: bool) -> None:
        """Compute a pass of a step: forward and backward over this rank's micro-batches of `turns`.

        A turn's loss is, for each of its tasks, its weight times the sum of its terms over all ranks and micro-batches,
        divided by their global number. A step's loss is the mean over its turns. Sums and counts are added to `losses`.
        `last` says that this is the step's last pass: the backward of its last micro-batch then waits for `step`.
        """

    def step(self, share: float, losses: StepLosses, ceiling: float | None) -> Update:
        """End a step: the backward that is left, then the update at `share` of the peak learning rates.

        Where `losses` are not accepted with this `ceiling`, nothing is updated, and the step's gradients are dropped.
        """

    def fragments(self) -> Iterator[Fragment]:
        """Yield this rank's fragments, in the order of the network's parameters; a tied weight comes once."""

    def parameters(self) -> int:
        """Return the number of parameters of the whole network, frozen ones too."""

    def progress(self) -> Progress:
        """Return the optimizer's progress, for a checkpoint."""

    def set_progress(self, progress: Progress) -> None:
        """Put back what `progress` returned; a run in another precision keeps its own loss scale."""

    def describe(self) -> dict[str, str]:
        """Return the engine's choices in words, by name, such as its precision and kernels; for people."""
