"""What the network knows of its heads: a task in objectives/tasks/ brings its own, a subclass of `Head`.

A head reads rows of the encoder's output that the batch's targets name. Every head is called in every forward, with a row of
zeros where a micro-batch asks nothing of it (`model/m3p.py` says why).
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from m3p.model.attention import Layout

if TYPE_CHECKING:
    from m3p.model.config import ModelConfig
    from m3p.model.flops import NetworkSizes

Targets = dict[str, Tensor]


class Head(nn.Module):
    """What all heads share: `rows` picks what is read, `forward` computes on it.

    A head whose output would be too large to keep takes `labels` too, and returns the sum of its losses instead. With `factors`
    of the rows [N] as well, it returns the sum of the losses times these, and the losses themselves [N] without gradient.
    """

    takes_labels = False
    views: int = 1
    """Rows that belong together, such as a pair's text and its picture: all first ones stand in front of all second ones."""

    def initialise(self) -> None:
        """Change starting weights that should not be those of every linear layer. Called once, after these are drawn."""

    def use(self, kernel: str) -> None:
        """Compute the word loss with this implementation (kernels/choice.py), if the head has one."""

    def rows(self, hidden: Tensor, layout: Layout, targets: Targets) -> Tensor:
        """Pick the rows to read: `hidden` [T, width] -> [N, width]. By default, the slots that the targets name."""
        return hidden[targets["slots"]]

    def complete(self, targets: Targets, seen: Tensor | None) -> Targets:
        """Return the targets with what only the network can add.

        `seen` [R, F] is what the visual embedder says of each row of the batch's pictures, to be predicted; None where the
        loader brings such targets.
        """
        return targets


class EmbeddingHead(Head):
    """A head that puts texts and pictures, each encoded alone, into one space: evaluation ranks by their cosine."""

    pooling: str
    """What of a sequence is pooled. first: its `<s>`; mean: the mean of its slots."""
    centre: nn.Parameter | None
    """[width] the mean of texts with its sign turned, which is added to each pooled text, of unit length, before its projection.

    All zeros until it is measured (training/text_centre.py). None: nothing is added."""

    @property
    def text_projection(self) -> nn.Linear:
        """The layer that projects pooled texts; it can be frozen alone."""
        raise NotImplementedError

    def pool(self, hidden: Tensor, layout: Layout, sequences: Tensor, skip: int) -> Tensor:
        """Pool `sequences` [N] of `hidden` [T, width] without their first `skip` slots: -> [N, width]."""
        raise NotImplementedError

    def embed_text(self, pooled: Tensor) -> Tensor:
        """Embed pooled texts: [N, width] -> [N, size] of unit length."""
        raise NotImplementedError

    def embed_image(self, pooled: Tensor) -> Tensor:
        """Embed pooled pictures: [N, width] -> [N, size] of unit length."""
        raise NotImplementedError


class PairHead(Head):
    """A head that says whether the text and the picture of one sequence belong together: evaluation re-ranks by it."""

    def score_pairs(self, hidden: Tensor, layout: Layout, sequences: Tensor) -> Tensor:
        """Score `sequences` [N] of `hidden` [T, width]: -> logits [N]."""
        raise NotImplementedError


class HeadOwner(ABC):
    """What the network asks of a task."""

    name: ClassVar[str]
    """In recipes, batches, figures and names of weights (`heads.NAME...`)."""
    reads: ClassVar[str | None] = None
    """Name of another task: this one reads the output of that one's head, of the same rows, and has no head of its own."""

    @abstractmethod
    def head(self, config: "ModelConfig", sizes: "NetworkSizes", words: nn.Embedding) -> Head:
        """Return a new head. `words` is the network's word table, for a decoder that is tied to it."""

    @abstractmethod
    def flops(self, sizes: "NetworkSizes") -> float:
        """Return the operations of the head's forward for one term of the loss."""


def mean_of_sequences(hidden: Tensor, layout: Layout, sequences: Tensor, skip: int) -> Tensor:
    """Mean of the slots of each of `sequences` [N], without its first `skip` (a lone picture's `<s>`): -> [N, width]."""
    values = hidden.float()
    for place in range(skip):
        values = values.index_fill(0, layout.starts[sequences] + place, 0.0)
    # Over all sequences, since the number of slots of some would have to be waited for.
    every = torch.arange(len(layout.lengths), device=hidden.device)
    owner = torch.repeat_interleave(every, layout.lengths, output_size=len(hidden))
    total = values.new_zeros(len(every), hidden.shape[-1]).index_add(0, owner, values)[sequences]
    return (total / (layout.lengths[sequences, None] - skip)).to(hidden.dtype)
