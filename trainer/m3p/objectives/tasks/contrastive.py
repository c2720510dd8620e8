"""Image against text over all pairs of a turn (CLIP, arXiv 2103.00020), exact whatever the ranks and micro-batches.

The features of a whole turn are collected by gradient caching (training/gradient_cache.py), which takes this loss of them.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from m3p.distributed import all_reduce_sum
from m3p.kernels.pair_cross_entropy import pair_cross_entropy
from m3p.kernels.pair_cross_entropy_shared import shared_pair_cross_entropy
from m3p.keys import key
from m3p.model.attention import Layout
from m3p.model.config import ModelConfig
from m3p.model.flops import NetworkSizes
from m3p.model.heads import EmbeddingHead, mean_of_sequences
from m3p.objectives.tasks.forms import Form, PackedPairs
from m3p.objectives.tasks.task import Targets, TurnTask
from m3p.packing import Packer

NAMES_OF_PICTURES = ("pictures", "contents", "published")
"""Targets that name pictures; two pictures are one if any of them is equal."""
MAX_SCALE = 100.0
"""Largest inverse of the temperature (CLIP's)."""
MAX_UNSHARED_PAIRS = 4096
"""Pairs of a turn up to which every rank computes the loss of all of them. That many logits fit in 64 MiB and take a GPU about a
millisecond; sharing the work costs two more collectives and twice as many calls of operations."""


class Contrastive(TurnTask):
    """Symmetric cross-entropy between texts and pictures; identical captions and pictures of one concept count as right."""

    name = "contrastive"
    needs_pictures = True
    forms = frozenset({Form.ALONE})
    embeds = True
    least_samples = 2

    def head(self, config: ModelConfig, sizes: NetworkSizes, words: nn.Embedding) -> "ContrastiveHead":
        """Return projections of text and picture, and the temperature."""
        return ContrastiveHead(
            sizes.shape.width,
            sizes.projection,
            config.pooling,
            config.temperature,
            config.learn_temperature,
            config.picture_hidden,
            config.picture_dropout,
            config.text_centre,
        )

    def ask(self, packer: Packer, pairs: PackedPairs) -> None:
        """Contrast texts and pictures that stand alone."""
        assert pairs.alone is not None
        ask_contrast(packer, *pairs.alone)

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """Sum over pairs. `output` [2B, projection]: the texts of the turn (scaled by 1/temperature), then its pictures.

        `targets`: `captions`, `pictures`, `contents` and `published`, [B] int64 names; equal names mean equal things.
        """
        text, image = output.float().chunk(2)
        return pair_cross_entropy(_hold_scale(text), image, targets["captions"], _picture_names(targets))

    def loss_and_gradient(self, features: Tensor, targets: Targets, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the loss of the whole turn and its gradient, [2, pairs, projection].

        Of more than `MAX_UNSHARED_PAIRS` pairs on several ranks, each computes the gradient of its `own`; other rows are zero.
        """
        if own is None or features.shape[1] <= MAX_UNSHARED_PAIRS:
            return super().loss_and_gradient(features, targets, own)
        text, image = features
        loss, to_text, to_image = shared_pair_cross_entropy(
            text, image, targets["captions"], _picture_names(targets), own, all_reduce_sum
        )
        gradient = torch.zeros_like(features)
        along = (text[own] * to_text).sum(1)
        gradient[0, own] = _without_rise(text[own], to_text, text.square().sum(1).max(), all_reduce_sum(along.sum()))
        gradient[1, own] = to_image
        return loss, gradient

    def turn_targets(self, terms: int, parts: list[Targets]) -> Targets:
        """Lay the names of this rank's micro-batches in the rows of the turn, [terms]; other ranks' rows are zero."""
        whole = {name: torch.zeros(terms, dtype=torch.int64) for name in ("captions", *NAMES_OF_PICTURES)}
        for part in parts:
            for name, rows in whole.items():
                rows[part["rows"]] = part[name]
        return whole

    def flops(self, sizes: NetworkSizes) -> float:
        """A pair: both projections, 4 w projection, and 2 (w + projection) hidden for the residual layer.

        It counts three times, with the backward. So what is frozen of a text's projection counts here by its share of that: the
        gradient of its weight, and that of a frozen encoder's output.
        """
        width, projection = sizes.shape.width, sizes.projection
        text = (1 + sizes.trains_text + sizes.trains_text_projection) / 3
        return 2 * (1 + text) * width * projection + 2 * (width + projection) * sizes.picture_hidden


class ContrastiveHead(EmbeddingHead):
    """Projects text and picture into one space: [2n, width] (texts, then pictures) -> [2n, projection] of unit length.

    The texts' rows carry the inverse temperature as a factor, so that their dot products with the pictures' rows are the
    logits, and the temperature gets its gradient through the features like every other parameter.

    Args:
        hidden: units of a residual layer on pictures; 0: none.
        dropout: of pooled pictures, and of what the residual layer adds.
        centre: whether texts are scaled to unit length and moved by a fixed vector before they are projected; training
            measures it (training/text_centre.py).
    """

    def __init__(
        self,
        width: int,
        projection: int,
        pooling: str,
        temperature: float,
        learn_temperature: bool,
        hidden: int = 0,
        dropout: float = 0.0,
        centre: bool = False,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.views, self.size = 2, projection  # features of a pair: its text's and its picture's
        self.text = nn.Linear(width, projection, bias=False)
        self.image = nn.Linear(width, projection, bias=False)
        self.up = nn.Linear(width, hidden) if hidden else None
        self.down = nn.Linear(hidden, projection) if hidden else None
        self.dropout = dropout
        self.centre = nn.Parameter(torch.zeros(width), requires_grad=False) if centre else None
        # Of one dimension, as ZeRO wants its parameters.
        self.log_scale = nn.Parameter(torch.full((1,), -math.log(temperature)), requires_grad=learn_temperature)

    def initialise(self) -> None:
        """Where the spaces are of one size, start where the encoder already puts sentences: that keeps what it knows."""
        for linear in (self.text, self.image):
            if linear.in_features == linear.out_features:
                nn.init.eye_(linear.weight)
        if self.down is not None:
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    @property
    def text_projection(self) -> nn.Linear:
        """The linear layer of texts; their centre is never trained."""
        return self.text

    def rows(self, hidden: Tensor, layout: Layout, targets: Targets) -> Tensor:
        """Pool the texts, then the pictures, that the targets name."""
        return torch.cat(
            [
                self.pool(hidden, layout, targets["text_sequences"], 0),
                self.pool(hidden, layout, targets["image_sequences"], 1),
            ]
        )

    def pool(self, hidden: Tensor, layout: Layout, sequences: Tensor, skip: int) -> Tensor:
        """Pool `sequences` [N]: their `<s>`, or the mean of their slots without the first `skip`. -> [N, width]."""
        if self.pooling == "first":
            return hidden[layout.starts[sequences]]
        return mean_of_sequences(hidden, layout, sequences, skip)

    def embed_text(self, pooled: Tensor) -> Tensor:
        """[N, width] -> [N, projection] of unit length."""
        if self.centre is not None:
            pooled = F.normalize(pooled.float(), dim=-1, eps=1e-6).to(pooled.dtype) + self.centre
        return F.normalize(self.text(pooled).float(), dim=-1, eps=1e-6)

    def embed_image(self, pooled: Tensor) -> Tensor:
        """[N, width] -> [N, projection] of unit length."""
        seen = F.dropout(pooled, self.dropout, self.training)
        embedded = self.image(seen)
        if self.up is not None and self.down is not None:
            added = self.down(F.gelu(self.up(seen)))
            embedded = embedded + F.dropout(added, self.dropout, self.training)
        return F.normalize(embedded.float(), dim=-1, eps=1e-6)

    def forward(self, rows: Tensor) -> Tensor:
        """Of an even number of rows; a single one (the dummy) counts as a text and as a picture.

        The scale is at most `MAX_SCALE`. Behind that ceiling the gradient passes as if there were none; the loss lets
        through only what points down (`_hold_scale`).
        """
        texts, images = rows.tensor_split([len(rows) // 2]) if len(rows) > 1 else (rows, rows)
        log_scale = self.log_scale.float()  # in 16 bits, neighbours near the ceiling would be 1.6 % apart
        held = log_scale.detach().clamp(max=math.log(MAX_SCALE)) - log_scale.detach()
        return torch.cat([self.embed_text(texts) * (log_scale + held).exp(), self.embed_image(images)])


def _hold_scale(text: Tensor) -> Tensor:
    """Return `text` [B, projection], whose gradient cannot push the scale above its ceiling.

    The scale's gradient is the sum over texts of the part of their gradient that points along them, which nothing else in
    the head reads: `F.normalize` drops it. At the ceiling that part is taken away where its sum would raise the scale. Left
    alone, the parameter would go on rising unseen and need thousands of steps to come back. It is decided here, from
    the features of the whole turn, so that it is one decision for all ranks and micro-batches.
    """
    held: Tensor = _HoldScale.apply(text)  # type: ignore[no-untyped-call]
    return held


class _HoldScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text: Tensor) -> Tensor:
        ctx.save_for_backward(text)
        return text.view_as(text)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (text,) = ctx.saved_tensors
        return _without_rise(text, gradient, text.square().sum(1).max(), (text * gradient).sum(1).sum())


def _without_rise(text: Tensor, gradient: Tensor, largest: Tensor, to_scale: Tensor) -> Tensor:
    """Return the gradient of `text` [n, projection], without its part along the texts where that would raise a scale too far.

    Args:
        largest: [], square of the longest text of the turn, and so of the scale.
        to_scale: [], the scale's gradient: the sum over all texts of the turn of the part along them.
    """
    squares, along = text.square().sum(1), (text * gradient).sum(1)
    at_ceiling = largest >= (MAX_SCALE * (1 - 1e-4)) ** 2
    rises = to_scale < 0
    removed = torch.where(at_ceiling & rises, along / squares.clamp(min=1e-12), 0.0)
    return gradient - removed[:, None] * text


def _picture_names(targets: Targets) -> Tensor:
    """Return the names of the pictures of a turn, [B, kinds of names]."""
    return torch.stack([targets[name] for name in NAMES_OF_PICTURES], 1)


def ask_contrast(
    packer: Packer,
    texts: range,
    images: range,
    rows: NDArray[np.int64],
    captions: list[str],
    *pictures: list[str],
) -> None:
    """Contrast the sequences `texts` [N] with the sequences `images`: pairs `rows` of the turn.

    The names in `captions` and `pictures` say what counts as identical; `pictures` are the `NAMES_OF_PICTURES` in that order,
    the first of which stands for those that are left out.
    """
    named = [names_of(names) for names in pictures]
    packer.target(
        Contrastive.name,
        text_sequences=np.array(texts),
        image_sequences=np.array(images),
        rows=rows,
        captions=names_of(captions),
        **dict(zip(NAMES_OF_PICTURES, named + [named[0]] * (len(NAMES_OF_PICTURES) - len(named)), strict=True)),
    )


def names_of(texts: list[str]) -> NDArray[np.int64]:
    """Return a number for each of `texts` [N]: equal ones for equal texts, and for others as good as never."""
    return np.array([key(text) >> 1 for text in texts], np.int64)  # 63 bits: torch has no unsigned 64-bit arithmetic
