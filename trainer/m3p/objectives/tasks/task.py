"""What a task is: one class that holds all that the program knows of it."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from m3p.model.config import ModelConfig
from m3p.model.flops import NetworkSizes
from m3p.model.heads import Head, HeadOwner, Targets
from m3p.objectives.tasks.forms import Form, PackedPairs
from m3p.packing import Packer

__all__ = ["Marks", "ReaderTask", "Targets", "Task", "TurnTask"]


class Marks(NamedTuple):
    """What a task asks of a micro-batch, as `m3p data peek` marks it."""

    words: Mapping[int, int] = {}
    """Slot of a word that is to be named -> its true token."""
    regions: frozenset[int] = frozenset()
    """Slots of the picture tokens that are to be predicted."""
    sequences: Mapping[int, str] = {}
    """Number of a sequence -> a remark on what is asked of it."""


class Task(HeadOwner):
    """A loss that is a sum over terms, the head that it reads, and what else the program asks of it."""

    over_turn: ClassVar[bool] = False
    """True where the loss compares samples of the whole turn (contrastive); such a task is a `TurnTask`."""
    needs_pictures: ClassVar[bool] = False
    """Whether only an objective with pictures can offer it."""
    forms: ClassVar[frozenset[Form]] = frozenset()
    """Forms of a pair that it asks about. Every objective on pairs offers each task that has any."""
    masks_words: ClassVar[bool] = False
    """Whether words of joint pairs are masked for it."""
    masks_regions: ClassVar[bool] = False
    """Whether tokens of the pictures of joint pairs are masked for it."""
    embeds: ClassVar[bool] = False
    """Whether evaluation ranks by its head, which is an `EmbeddingHead`."""
    scores_pairs: ClassVar[bool] = False
    """Whether evaluation re-ranks by its head, which is a `PairHead`."""
    least_samples: ClassVar[int] = 1
    """Samples that a turn must have for it."""

    def ask(self, packer: Packer, pairs: PackedPairs) -> None:
        """Add targets that ask about the packed `pairs` of a micro-batch; a task without `forms` is never called."""

    def count(self, targets: Targets) -> int:
        """Return the number of terms in a micro-batch: by default the rows of its targets."""
        return len(next(iter(targets.values())))

    @abstractmethod
    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """Return the sum of the terms, float32; `output` is what the task's head gave."""

    def terms(self, masked_words: float, masked_regions: float) -> float:
        """Return how many terms a pair brings of which so many words and regions are masked; for the forecast."""
        return 1.0

    def memory(self, terms: float, sizes: NetworkSizes, element: int, device: str) -> float:
        """Return the bytes that the head needs for so many terms of a micro-batch, where they matter; for the forecast.

        `element`: bytes of a weight. `device`: "cuda" or "cpu".
        """
        return 0.0

    def fingerprints(self, sources: int) -> dict[str, str]:
        """Return what, beside recipe and data, decides what it asks of an objective of so many sources: name -> value.

        A run goes on from a checkpoint only if these are as they were.
        """
        return {}

    def show(self, targets: Targets) -> Marks:
        """Return what it asks of a micro-batch, to be shown."""
        return Marks()


class ReaderTask(Task):
    """A task on the output of another task's head (`reads`), of the same rows: it has no head of its own."""

    def head(self, config: ModelConfig, sizes: NetworkSizes, words: nn.Embedding) -> Head:
        """Never called: raises AssertionError."""
        raise AssertionError(f"{self.name} reads the head of {self.reads}")

    def flops(self, sizes: NetworkSizes) -> float:
        """None: the head is counted where it belongs."""
        return 0.0


class TurnTask(Task):
    """A task whose loss compares samples of the whole turn, whatever the ranks and micro-batches (gradient_cache.py).

    Its head gives `views` features of each term, [views * terms, size]. In a micro-batch, `targets["rows"]` [terms] are the
    places of its terms in the turn.
    """

    over_turn = True

    def loss_and_gradient(self, features: Tensor, targets: Targets, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the loss of the whole turn, [], and its gradient with respect to `features` [views, terms, size].

        Every rank has all features and targets, and calls it at the same point. By default it computes the whole gradient;
        only the rows `own` of its micro-batches must be right. `own` is None where this rank is the only one.
        """
        with torch.enable_grad():
            features = features.detach().requires_grad_()
            loss = self.loss(features.flatten(0, 1), targets)
            (gradient,) = torch.autograd.grad(loss, features)
        return loss.detach(), gradient

    @abstractmethod
    def turn_targets(self, terms: int, parts: list[Targets]) -> Targets:
        """Lay the targets of this rank's micro-batches in the rows of the turn, [terms]; other ranks' rows are zero."""
