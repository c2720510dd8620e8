"""What a checkpoint takes from an engine: fragments of parameters, and the optimizer's progress."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHT = "weight"


@dataclass(frozen=True)
class Fragment:
    """A run of elements of one flattened parameter that one rank holds; together the ranks' fragments cover it."""

    name: str
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    start: int
    """First element that this rank holds, in the flattened parameter."""
    numel: int
    saved: range
    """Elements that this rank writes: all that it holds, or its share where every rank holds all."""
    tensors: dict[str, Tensor]
    """`weight` (float32 where trained), `exp_avg`, `exp_avg_sq` -> flat views [numel]; a frozen one has no moments."""

    def copy(self) -> dict[str, Tensor]:
        """Return what this rank writes, float32, in host memory that training does not touch."""
        first, last = self.saved.start - self.start, self.saved.stop - self.start
        return {kind: _host_copy(tensor[first:last]) for kind, tensor in self.tensors.items()}


@dataclass(frozen=True)
class Progress:
    """What the optimizer remembers besides its moments."""

    updates: int = 0
    """Updates that were made; skipped steps do not count."""
    loss_scale: Mapping[str, float] = field(default_factory=dict)
    """State of fp16's loss scaling; empty in other precisions."""


class Checkpointed(Protocol):
    """An engine as checkpoints see it."""

    def fragments(self) -> Iterator[Fragment]:
        """Yield this rank's fragments, in the order of the network's parameters; a tied weight comes once."""

    def parameters(self) -> int:
        """Return the number of parameters of the whole network, frozen ones too."""

    def progress(self) -> Progress:
        """Return the optimizer's progress."""

    def set_progress(self, progress: Progress) -> None:
        """Put back what `progress` returned; a run in another precision keeps its own loss scale."""


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
