"""Masked regions (M3P's MC-MRM): regress the hidden feature, and predict its object class where the source has classes."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from m3p.batch import Picture
from m3p.keys import choose, hashes, splitmix64, uniform
from m3p.model.config import ModelConfig
from m3p.model.flops import NetworkSizes
from m3p.model.heads import Head
from m3p.objectives.tasks.forms import Form, PackedPairs
from m3p.objectives.tasks.task import Marks, Targets, Task
from m3p.packing import Packer
from m3p.visual.pixels import as_numbers

Ids = NDArray[np.int64]


class MaskedRegions(Task):
    """Squared error of the feature relative to its squared length, plus the loss of the class.

    That is the cross-entropy of the likeliest class, or the KL divergence from the detector's whole distribution (UNITER's
    mrc-kl, arXiv 1909.11740) where the visual source gives one.
    """

    name = "masked_regions"
    needs_pictures = True
    forms = frozenset({Form.JOINT})
    masks_regions = True

    def head(self, config: ModelConfig, sizes: NetworkSizes, words: nn.Embedding) -> "RegionHead":
        """Return linear layers to the feature and the classes of the visual source."""
        return RegionHead(sizes.shape.width, sizes.feature_size, sizes.classes, sizes.shape.layer_norm_eps)

    def ask(self, packer: Packer, pairs: PackedPairs) -> None:
        """Ask for the masked regions of joint pairs."""
        assert pairs.joint is not None
        ask_regions(packer, pairs.joint.regions, pairs.joint.pictures)

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """`output` [K, F + C]: feature, then class logits.

        Dividing by the target's squared length gives detector features (unit length) and pixels one scale; M3P's mean over
        the 2,048 numbers of a unit vector would weigh next to nothing. What has next to no length, a detector's padding or
        a patch of flat mid grey, is divided by the source's least length: otherwise it would outweigh all the others a
        million times.
        """
        wanted = as_numbers(targets["features"])
        feature, classes = output.float().tensor_split([wanted.shape[1]], 1)
        error = (feature - wanted).square().sum(1) / wanted.square().sum(1).clamp(min=targets["least"])
        total = error.sum()
        if not classes.shape[1]:
            return total
        if "distribution" in targets:
            return total + F.kl_div(classes.log_softmax(-1), targets["distribution"], reduction="sum")
        return total + F.cross_entropy(classes, targets["classes"], reduction="sum")

    def flops(self, sizes: NetworkSizes) -> float:
        """A masked region: 2 w F, and where there are classes 2 w^2 + 2 w classes."""
        width = sizes.shape.width
        classes = 2 * width**2 + 2 * width * sizes.classes if sizes.classes else 0
        return 2 * width * sizes.feature_size + classes

    def terms(self, masked_words: float, masked_regions: float) -> float:
        """The masked regions."""
        return masked_regions

    def show(self, targets: Targets) -> Marks:
        """Mark the masked regions."""
        return Marks(regions=frozenset(targets["slots"].tolist()))


class RegionHead(Head):
    """Masked regions: [K, width] -> feature [K, F] and class logits [K, C] (C = 0 where there are none)."""

    def __init__(self, width: int, feature_size: int, classes: int, eps: float) -> None:
        super().__init__()
        self.feature = nn.Linear(width, feature_size)
        self.classes = None if classes == 0 else _classifier(width, classes, eps)

    def complete(self, targets: Targets, seen: Tensor | None) -> Targets:
        """Add the features that the visual embedder sees in the whole picture, where the source predicts these."""
        if seen is None:
            return targets
        return {**targets, "features": seen.detach().float()[targets["embedded_rows"]]}

    def forward(self, rows: Tensor) -> Tensor:
        """Return [K, F + C]: feature and class logits side by side."""
        feature = self.feature(rows)
        return feature if self.classes is None else torch.cat([feature, self.classes(rows)], -1)


def _classifier(width: int, classes: int, eps: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=eps), nn.Linear(width, classes))


class RegionMask(NamedTuple):
    """Masked regions of several pictures, in rising order of picture and place."""

    pictures: Ids
    """Number of the picture that each belongs to: [K]."""
    places: Ids
    """Its number among the picture's regions: [K]."""
    hidden: NDArray[np.bool_]
    """Whether it loses its feature (zeros, or mid grey; the box stays): [K]."""

    def by_picture(self) -> "Iterator[tuple[int, RegionMask]]":
        """Yield the number of each picture that has any, and its own part."""
        firsts = np.flatnonzero(np.diff(self.pictures, prepend=-1)).tolist()
        for first, end in pairwise([*firsts, len(self.pictures)]):
            yield (
                int(self.pictures[first]),
                RegionMask(self.pictures[first:end], self.places[first:end], self.hidden[first:end]),
            )


def mask_regions(
    pictures: Sequence[Picture], keys: NDArray[np.uint64], rate: float, background: int | None
) -> RegionMask:
    """Choose each region that is not background with chance `rate`, at least one a picture, and hide 90 % of the chosen.

    The choices of each picture are drawn by its key [N]. All pictures at once, as `mask_words` does it.
    """
    lengths = np.array([picture.tokens for picture in pictures], np.int64)
    owners = np.arange(len(pictures)).repeat(lengths)
    places = np.arange(len(owners)) - (lengths.cumsum() - lengths)[owners]
    numbers = hashes(keys[owners], places)
    coins = uniform(numbers)
    if background is not None and pictures:
        coins[np.concatenate([_classes(picture) for picture in pictures]) == background] = 1
    chosen = choose(coins, lengths, rate)
    return RegionMask(owners[chosen], places[chosen], uniform(splitmix64(numbers[chosen])) < 0.9)


def ask_regions(packer: Packer, slots: Ids, wanted: Sequence[tuple[Picture, Ids]]) -> None:
    """Ask for what is at `slots` [K]: of each picture of `wanted`, the true ones, the regions at some places, K in all."""
    first = 0
    for picture, places in wanted:
        end = first + len(places)
        features = picture.targets_at(places)
        # Where the visual embedder makes the targets, they are those of the rows of the whole, unhidden picture.
        made: dict[str, NDArray[Any]] = (
            {"embedded_rows": packer.row_of(picture) + places} if features is None else {"features": features}
        )
        distribution = picture.class_distribution_at(places)
        if distribution is not None:
            made["distribution"] = distribution
        packer.target(
            MaskedRegions.name,
            slots=slots[first:end],
            classes=_classes(picture)[places],
            least=np.full(len(places), picture.least_length, np.float32),
            **made,
        )
        first = end


def _classes(picture: Picture) -> Ids:
    """Return the class of each region, -1 where the source has none: [R]."""
    return np.full(picture.tokens, -1) if picture.class_ids is None else picture.class_ids
