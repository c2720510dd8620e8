"""Masked regions (M3P's MC-MRM): regress the hidden feature, and name its object class where the source has classes."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer.batch import Packer, Picture
from trainer.objectives.tasks.task import Targets
from trainer.visual.pixels import scaled

Places = NDArray[np.int64]


class MaskedRegions:
    """Squared error of the feature relative to its squared length, plus cross-entropy of the class."""

    name = "masked_regions"
    over_turn = False

    def count(self, targets: Targets) -> int:
        """Masked regions."""
        return len(targets["slots"])

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """`output` [K, F + C]: feature, then class logits.

        Dividing by the target's squared length gives detector features (unit length) and pixels (unit variance) one
        scale; M3P's mean over the 2,048 numbers of a unit vector would weigh next to nothing.
        """
        wanted = targets["features"]
        wanted = scaled(wanted) if wanted.dtype == torch.uint8 else wanted
        feature, classes = output.float().tensor_split([wanted.shape[1]], 1)
        error = (feature - wanted).square().sum(1) / wanted.square().sum(1).clamp(min=1e-6)
        total = error.sum()
        if classes.shape[1]:
            total = total + F.cross_entropy(classes, targets["classes"], reduction="sum")
        return total


def mask_regions(
    visual: Picture, rng: np.random.Generator, rate: float, background: int | None
) -> tuple[Places, Places]:
    """Choose each region that is not background with chance `rate`, at least one: -> (the chosen, those of them to hide).

    Of the chosen, 90 % lose their feature (zeros, or mid grey; the box stays) and 10 % keep it.
    """
    eligible = np.arange(visual.tokens)
    if background is not None and visual.class_ids is not None:
        eligible = eligible[visual.class_ids != background]
    if not len(eligible):
        return eligible, eligible
    chosen = eligible[rng.random(len(eligible)) < rate]
    if not len(chosen):
        chosen = eligible[rng.integers(len(eligible), size=1)]
    return chosen, chosen[rng.random(len(chosen)) < 0.9]


def ask_regions(packer: Packer, first: int, places: Places, visual: Picture) -> None:
    """Ask for the regions at `places`; `first` is the slot of the picture's first token, `visual` the true picture."""
    classes = np.full(len(places), -1) if visual.class_ids is None else visual.class_ids[places]
    packer.target(MaskedRegions.name, slots=first + places, features=visual.numbers(places), classes=classes)
