"""Matching (M3P's MC-VLM): does this caption belong to this picture? One true and one mismatched pair a sample."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from trainer.batch import Packer
from trainer.objectives.tasks.task import Targets


class Matching:
    """Binary cross-entropy of the matching logit."""

    name = "matching"
    over_turn = False

    def count(self, targets: Targets) -> int:
        """Pairs, true and mismatched."""
        return len(targets["sequences"])

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """`output` [N] logits."""
        return F.binary_cross_entropy_with_logits(output.float(), targets["labels"], reduction="sum")


def ask_match(packer: Packer, sequence: int, match: bool) -> None:
    """Ask whether the pair in `sequence` matches."""
    packer.target(Matching.name, sequences=np.array([sequence]), labels=np.array([float(match)], np.float32))
