"""Matching (M3P's MC-VLM): does this caption belong to this picture? One true and one mismatched pair a sample."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3p.model.attention import Layout
from m3p.model.config import ModelConfig
from m3p.model.flops import NetworkSizes
from m3p.model.heads import PairHead
from m3p.objectives.tasks.forms import Form, PackedPairs
from m3p.objectives.tasks.task import Marks, Targets, Task
from m3p.packing import Packer


class Matching(Task):
    """Binary cross-entropy of the matching logit."""

    name = "matching"
    needs_pictures = True
    forms = frozenset({Form.JOINT, Form.MISMATCHED})
    scores_pairs = True
    least_samples = 2

    def head(self, config: ModelConfig, sizes: NetworkSizes, words: nn.Embedding) -> "MatchingHead":
        """Return BERT's pooler and one logit."""
        return MatchingHead(sizes.shape.width)

    def ask(self, packer: Packer, pairs: PackedPairs) -> None:
        """Ask of joint pairs and of mismatched ones whether they match."""
        assert pairs.joint is not None
        ask_match(packer, pairs.joint.sequences, True)
        if pairs.mismatched is not None:
            ask_match(packer, pairs.mismatched.sequences, False)

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """`output` [N] logits."""
        return F.binary_cross_entropy_with_logits(output.float(), targets["labels"], reduction="sum")

    def flops(self, sizes: NetworkSizes) -> float:
        """A pair: pooler and logit, 2 w^2 + 2 w."""
        width = sizes.shape.width
        return 2 * width**2 + 2 * width

    def terms(self, masked_words: float, masked_regions: float) -> float:
        """The true pair and the mismatched one."""
        return 2.0

    def fingerprints(self, sources: int) -> dict[str, str]:
        """Say from where mismatched partners come, where there is a choice: before, from whatever source came next."""
        return {"mismatched partners": "of the own source"} if sources > 1 else {}

    def show(self, targets: Targets) -> Marks:
        """Say of each pair whether it matches."""
        labels = zip(targets["sequences"].tolist(), targets["labels"].tolist(), strict=True)
        other = "no match: the other half is another sample's"
        return Marks(sequences={sequence: "match" if label else other for sequence, label in labels})


class MatchingHead(PairHead):
    """Does the picture belong to the caption? BERT's pooler at `<s>`, then one logit: [N, width] -> [N]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)

    def rows(self, hidden: Tensor, layout: Layout, targets: Targets) -> Tensor:
        """`<s>` of each sequence that the targets name."""
        return hidden[layout.starts[targets["sequences"]]]

    def score_pairs(self, hidden: Tensor, layout: Layout, sequences: Tensor) -> Tensor:
        """Score `sequences` [N]: -> logits [N]."""
        logits: Tensor = self(hidden[layout.starts[sequences]])
        return logits

    def forward(self, rows: Tensor) -> Tensor:
        """Logits."""
        return self.score(torch.tanh(self.pooler(rows))).squeeze(-1)


def ask_match(packer: Packer, sequences: range, match: bool) -> None:
    """Ask of each of `sequences` whether its pair matches, which all do, or none."""
    labels = np.full(len(sequences), match, np.float32)
    packer.target(Matching.name, sequences=np.array(sequences), labels=labels)
