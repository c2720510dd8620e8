"""Masked regions (M3P's MC-MRM): regress the hidden feature, and name its object class where the source has classes."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m3p.batch import Picture
from m3p.keys import choose, hashes, splitmix64, uniform
from m3p.objectives.tasks.task import Targets
from m3p.packing import Packer
from m3p.visual.pixels import scaled

Ids = NDArray[np.int64]

LEAST_OF_FEATURE = 0.5
"""Squared length of a feature: 1, or 0 where there is none."""
LEAST_OF_PIXEL = 0.1
"""Square of a pixel in -1..1, its mean over a patch: a third in noise, 1 in white and black."""


class MaskedRegions:
    """Squared error of the feature relative to its squared length, plus cross-entropy of the class."""

    name = "masked_regions"
    over_turn = False

    def count(self, targets: Targets) -> int:
        """Masked regions."""
        return len(targets["slots"])

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """`output` [K, F + C]: feature, then class logits.

        Dividing by the target's squared length gives detector features (unit length) and pixels one scale; M3P's mean over
        the 2,048 numbers of a unit vector would weigh next to nothing. What has next to no length, a detector's padding or
        a patch of flat mid grey, is divided by a least length: otherwise it would outweigh all the others a million times.
        """
        wanted, least = targets["features"], LEAST_OF_FEATURE
        if wanted.dtype == torch.uint8:
            wanted, least = scaled(wanted), LEAST_OF_PIXEL * wanted.shape[1]
        feature, classes = output.float().tensor_split([wanted.shape[1]], 1)
        error = (feature - wanted).square().sum(1) / wanted.square().sum(1).clamp(min=least)
        total = error.sum()
        if classes.shape[1]:
            total = total + F.cross_entropy(classes, targets["classes"], reduction="sum")
        return total


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
        classes, features = _classes(picture)[places], picture.targets_at(places)
        packer.target(MaskedRegions.name, slots=slots[first:end], features=features, classes=classes)
        first = end


def _classes(picture: Picture) -> Ids:
    """Return the class of each region, -1 where the source has none: [R]."""
    return np.full(picture.tokens, -1) if picture.class_ids is None else picture.class_ids
