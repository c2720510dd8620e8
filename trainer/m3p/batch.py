"""The packed micro-batch: the one thing that data, objectives and model have in common.

Sequences of any kind (words, a picture, or both) lie side by side on one packed axis of T slots, without padding.
A task says what it wants from the network by the slots or sequences that it names in `targets`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor | None]
"""Gives the memory that a tensor of a batch is written to, by its shape and dtype; None where it has none to give.

The loader passes one to whatever packs a micro-batch, so that pictures are decoded where the training process sees them."""


def allocate_nothing(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """The `Allocate` that has nothing to give: a batch lies in fresh memory."""
    return None


class Picture(Protocol):
    """A picture that the network sees as R tokens, in the form that its visual source's embedder takes."""

    @property
    def features(self) -> NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint8]:
        """[N, ...]: the pictures of a micro-batch are laid end to end along the first axis."""

    @property
    def boxes(self) -> NDArray[np.float32] | None:
        """[R, 4] as x1, y1, x2, y2 in 0..1 of the picture, or None where the source needs none."""

    @property
    def class_ids(self) -> NDArray[np.int64] | None:
        """[R] object class of each token, or None where the source has none."""

    @property
    def tokens(self) -> int:
        """R."""

    def targets_at(self, places: NDArray[np.int64]) -> NDArray[np.float32] | NDArray[np.uint8] | None:
        """Return the tokens at `places` [K] as numbers to be predicted, [K, F]; uint8 are pixels, which the loss scales.

        None where the numbers to be predicted are made by the visual embedder.
        """

    def class_distribution_at(self, places: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return the distribution over object classes of the tokens at `places` [K], which is to be predicted: [K, C].

        None where the one class of `class_ids` is to be predicted, or none at all.
        """

    @property
    def least_length(self) -> float:
        """Least squared length of such numbers by which the error is divided; some have next to none."""

    def blank(self, places: NDArray[np.int64]) -> "Blank":
        """Return what is seen where the tokens at `places` [K] are hidden.

        If the embedder mixes tokens, every token of a picture tells of every other. Then what is shown in the place of the hidden
        ones must not come of the picture, and the others still tell of them what the mixing has carried there: where that is
        too much, all tokens must be those of a copy in which what is hidden is painted over.
        """


class Blank(NamedTuple):
    """What is seen of a picture some tokens of which are hidden."""

    picture: Picture | None
    """Another picture: of nothing, or a copy in which what is hidden is painted over. None: rows that the embedder has for hidden
    tokens, behind those of all pictures."""
    places: NDArray[np.int64]
    """[P] tokens of the picture that show it: the hidden ones, or all."""
    tokens: NDArray[np.int64]
    """[P] the token of the other picture, or the embedder's row for hidden tokens, that each shows."""


class Sequence(NamedTuple):
    """One sequence before packing: words first, then the picture's tokens."""

    token_ids: NDArray[np.int64]
    """[L], at least one: `<s>` stands in front, also of a picture alone."""
    visual: Picture | None = None


@dataclass
class HardNegatives:
    """What is known of the N pairs of a micro-batch to which training adds hard negatives (training/hard_negatives.py)."""

    rows: Tensor
    """[N] int64: place of each pair in its turn."""
    texts: Tensor
    """[N] int64: number of the sequence that is its text alone."""
    pictures: Tensor
    """[N] int64: number of the sequence that is its picture alone."""
    sources: Tensor
    """[N] int64: number of its source."""
    keys: Tensor
    """[N] int64: what its random choice is keyed by, 64 bits."""
    captions: Tensor
    """[K] int64: names of all captions that it has, in all languages, pair by pair; equal names mean equal captions."""
    captions_of: Tensor
    """[N] int64: how many of these are its own."""
    wanted: int = 1
    """Mismatched pairs of each pair."""
    by_similarity: int = 1
    """How many of these are drawn in proportion to similarity; the others are drawn with equal chances."""
    loss: Literal["bce", "softmax", "hinge"] = "bce"
    """The loss of matching."""

    def map(self, change: Callable[[Any], Any]) -> "HardNegatives":
        """Return the same with something else in place of each tensor."""
        tensors = {name.name: change(getattr(self, name.name)) for name in fields(self) if name.type is Tensor}
        return replace(self, **tensors)


@dataclass
class Batch:
    """A packed micro-batch. T slots, W words, V visual tokens, S sequences.

    A picture that several sequences show is packed, and embedded, once: R rows, of which each visual token shows one. Where
    tokens of it are hidden in a sequence, tokens show other rows instead (`Blank`).
    What has a number for each word or visual token follows from what has one for each sequence, and is computed where it is
    used: less to pack, and to move to the device. Plain numbers are there to be read without waiting for the device.
    """

    token_ids: Tensor
    """[W] int64."""
    words: Tensor
    """[S] int64: words of each sequence; they sum to W."""
    lengths: Tensor
    """[S] int64: slots of each sequence; they sum to T."""
    visual_starts: Tensor
    """[S] int64: the row of the first token of the picture that a sequence shows; 0 where it shows none."""
    visual_features: Tensor
    """[N, ...]: what the embedder of the visual source turns into R rows; uint8 for pixels, else float32 or float16."""
    visual_boxes: Tensor
    """[R, 4] float32; [0, 4] where the visual source needs none."""
    hidden: Tensor
    """[H] int64: which of the visual tokens show another row, since they or others of their picture are hidden."""
    hidden_rows: Tensor
    """[H] int64: the rows that they show instead; from R on, rows that the embedder has for hidden tokens."""
    targets: dict[str, dict[str, Tensor]]
    """Task name -> its tensors; `slots` [M] or `sequences` [N] says where the task's head reads."""
    tokens: int
    """T: none is padding."""
    embedded_rows: int
    """R."""
    longest: int
    """Slots of the longest sequence."""
    samples: int
    """Samples of the data that this micro-batch holds; 0 when a rank has none left of a turn."""
    names: list[str] = field(default_factory=list)
    """Shard and key of each sample, for messages."""
    bad: list[str] = field(default_factory=list)
    """Bad samples that were met and replaced: where, and why."""
    counts: dict[str, int] = field(default_factory=dict)
    """What the monitor adds up: words seen, words switched to a language, ..."""
    hard: HardNegatives | None = None
    """None where the objective wants no hard negatives."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; copies do not wait where the memory is pinned."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory."""
        return self.map(Tensor.pin_memory)

    def map(self, change: Callable[[Any], Any]) -> "Batch":
        """Return the batch with something else in place of each tensor: one on a device, or a note where it lies."""
        content: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        for name in TENSORS:
            content[name] = change(content[name])
        content["targets"] = {
            task: {name: change(tensor) for name, tensor in of.items()} for task, of in self.targets.items()
        }
        content["hard"] = None if self.hard is None else self.hard.map(change)
        return Batch(**content)

    @property
    def token_places(self) -> Tensor:
        """[W] int64: 0, 1, ... inside its sequence."""
        return self._words[0]

    @property
    def token_slots(self) -> Tensor:
        """[W] int64: the slot of each word."""
        places, owners = self._words
        return self._slots[owners] + places

    @property
    def visual_slots(self) -> Tensor:
        """[V] int64: the slot of each visual token."""
        places, owners = self._shown
        return (self._slots + self.words)[owners] + places

    @property
    def visual_rows(self) -> Tensor:
        """[V] int64: the row of each visual token."""
        places, owners = self._shown
        rows = self.visual_starts[owners] + places
        rows[self.hidden] = self.hidden_rows
        return rows

    @cached_property
    def _words(self) -> tuple[Tensor, Tensor]:
        return _count(self.words, len(self.token_ids))

    @cached_property
    def _shown(self) -> tuple[Tensor, Tensor]:
        return _count(self.lengths - self.words, self.tokens - len(self.token_ids))

    @property
    def _slots(self) -> Tensor:
        """[S]: the first slot of each sequence."""
        return self.lengths.cumsum(0) - self.lengths


FIELDS = tuple(field.name for field in fields(Batch))
TENSORS = tuple(field.name for field in fields(Batch) if field.type is Tensor)
"""Names of the fields of a `Batch` that are tensors."""


def _count(lengths: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Lay runs of `lengths` [S] end to end, `total` in all: -> (place in its run, number of its run) of each, [total]."""
    owners = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=total)
    first = lengths.cumsum(0) - lengths
    return torch.arange(total, device=lengths.device) - first[owners], owners
