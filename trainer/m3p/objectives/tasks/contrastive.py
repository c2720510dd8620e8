"""Image against text over all pairs of a turn (CLIP, arXiv 2103.00020), exact whatever the ranks and micro-batches.

The features of a whole turn are collected by gradient caching (training/gradient_cache.py), which takes this loss of them.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m3p.keys import key
from m3p.objectives.tasks.task import Targets
from m3p.packing import Packer


class Contrastive:
    """Symmetric cross-entropy between texts and pictures; identical captions and pictures of one concept count as right."""

    name = "contrastive"
    over_turn = True

    def count(self, targets: Targets) -> int:
        """Pairs."""
        return len(targets["rows"])

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """Sum over pairs. `output` [2B, projection]: the texts of the turn (scaled by 1/temperature), then its pictures.

        `targets`: `captions` and `pictures`, [B] int64 names; equal names mean equal things.
        """
        text, image = output.float().chunk(2)
        right = targets["captions"][:, None] == targets["captions"]
        right |= targets["pictures"][:, None] == targets["pictures"]
        logits = text @ image.T
        return (_soft_cross_entropy(logits, right) + _soft_cross_entropy(logits.T, right.T)) / 2

    def turn_targets(self, terms: int, parts: list[Targets]) -> Targets:
        """Lay the names of this rank's micro-batches in the rows of the turn, [terms]; other ranks' rows are zero."""
        whole = {name: torch.zeros(terms, dtype=torch.int64) for name in ("captions", "pictures")}
        for part in parts:
            for name, rows in whole.items():
                rows[part["rows"]] = part[name]
        return whole


def _soft_cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Cross-entropy with the right answers of a row equally likely, summed over rows."""
    wanted = right.float() / right.sum(1, keepdim=True)
    return -(wanted * F.log_softmax(logits, 1)).sum()


def ask_contrast(
    packer: Packer, texts: range, images: range, rows: NDArray[np.int64], captions: list[str], pictures: list[str]
) -> None:
    """Contrast the sequences `texts` [N] with the sequences `images`: pairs `rows` of the turn.

    The names in `captions` and `pictures` say what counts as identical.
    """
    packer.target(
        Contrastive.name,
        text_sequences=np.array(texts),
        image_sequences=np.array(images),
        rows=rows,
        captions=_names(captions),
        pictures=_names(pictures),
    )


def _names(texts: list[str]) -> NDArray[np.int64]:
    return np.array([key(text) >> 1 for text in texts], np.int64)  # 63 bits: torch has no unsigned 64-bit arithmetic
