"""Matching (M3P's MC-VLM): does this caption belong to this picture? One true pair a sample, and mismatched ones."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from m3p.model.attention import Layout
from m3p.model.config import ModelConfig
from m3p.model.flops import NetworkSizes
from m3p.model.heads import PairHead
from m3p.objectives.tasks.forms import Form, PackedPairs
from m3p.objectives.tasks.negatives import Loss
from m3p.objectives.tasks.task import Marks, Targets, Task
from m3p.packing import Packer

MARGIN = 0.2
"""Margin of the hinge loss, between scores in 0..1 (UC2, arXiv 2104.00332)."""


class Matching(Task):
    """The loss of matching logits, in the form that the objective's field `matching.loss` names.

    Its targets say which form that is. `sequences` [N] and `labels` [N] (1: true, 0: mismatched) are always there. Where the
    loss compares pairs, `groups` [N] has one number for a true pair and its mismatched ones, all in one micro-batch; for the
    hinge loss, `margins` [N] is there too.
    """

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
        loss, groups = pairs.matching.loss, np.arange(len(pairs.joint.sequences))
        ask_match(packer, pairs.joint.sequences, True, loss, groups)
        if pairs.mismatched is not None:
            ask_match(packer, pairs.mismatched.sequences, False, loss, pairs.mismatched_of)

    def count(self, targets: Targets) -> int:
        """Return the number of terms: pairs (bce), groups (softmax), or mismatched pairs (hinge).

        A true pair to which no mismatched one was found is no group.
        """
        labels = targets["labels"]
        if "groups" not in targets:
            return len(labels)
        mismatched = targets["groups"][labels == 0]
        return len(mismatched) if "margins" in targets else len(set(mismatched.tolist()))

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """Return the sum over terms; `output` is [N] logits."""
        logits, labels = output.float(), targets["labels"]
        if "groups" not in targets:
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        of_group = targets["groups"][:, None] == targets["groups"]  # [N, N]
        if "margins" in targets:
            scores = logits.sigmoid()
            true = (of_group * (scores * labels)).sum(1)
            return (F.relu(targets["margins"] + scores - true) * (1 - labels)).sum()
        totals = logits.expand_as(of_group).masked_fill(~of_group, -torch.inf).logsumexp(1)
        return ((totals - logits) * labels).sum()

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


def ask_match(
    packer: Packer, sequences: range, match: bool, loss: Loss = "bce", groups: NDArray[np.int64] | None = None
) -> None:
    """Ask of each of `sequences` [N] whether its pair matches, which all do, or none; for a loss over `groups` [N]."""
    numbers = np.array(sequences, np.int64)
    packer.target(Matching.name, **match_targets(numbers, np.full(len(numbers), match, np.float32), loss, groups))


def match_targets(
    sequences: NDArray[np.int64], labels: NDArray[np.float32], loss: Loss, groups: NDArray[np.int64] | None
) -> dict[str, NDArray[np.generic]]:
    """Return the targets of `Matching` that ask about `sequences` [N], in the form that `loss` needs; see there."""
    found: dict[str, NDArray[np.generic]] = {"sequences": sequences, "labels": labels}
    if loss != "bce":
        assert groups is not None, loss
        found["groups"] = groups
    if loss == "hinge":
        found["margins"] = np.full(len(labels), MARGIN, np.float32)
    return found
