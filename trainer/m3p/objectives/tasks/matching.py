"""Matching (M3P's MC-VLM): does this caption belong to this picture? One true and one mismatched pair a sample."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from m3p.objectives.tasks.task import Targets
from m3p.packing import Packer


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


def ask_match(packer: Packer, sequences: range, match: bool) -> None:
    """Ask of each of `sequences` whether its pair matches, which all do, or none."""
    labels = np.full(len(sequences), match, np.float32)
    packer.target(Matching.name, sequences=np.array(sequences), labels=labels)
