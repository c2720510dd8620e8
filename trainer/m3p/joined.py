"""Micro-batches of several turns laid end to end, so that the network computes on all of them in one pass.

A pass costs the program the same time however little it computes. Sequences never see each other, so the words, slots and
pictures of the parts only have to stand side by side; what the tasks ask stays with each part.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from m3p.batch import Batch
from m3p.errors import OneRankError


@dataclass(frozen=True)
class Joined:
    """Micro-batches of several turns as one."""

    whole: Batch
    """All of them end to end; without targets."""
    parts: Sequence[Batch]
    """As they were."""
    scales: Sequence[Mapping[str, float]]
    """For each part, task -> the factor of its summed loss in the loss of the step."""


def join(parts: Sequence[Batch], scales: Sequence[Mapping[str, float]]) -> Joined:
    """Lay micro-batches end to end, on the device where they are; `scales` are as in `Joined`.

    Raises OneRankError: two of them show pictures in forms that no one tensor holds.
    """
    rows = [0, *accumulate(part.embedded_rows for part in parts)]
    shown = [0, *accumulate(part.tokens - len(part.token_ids) for part in parts)]
    whole = replace(
        parts[0],
        token_ids=torch.cat([part.token_ids for part in parts]),
        words=torch.cat([part.words for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        visual_starts=torch.cat([part.visual_starts + first for part, first in zip(parts, rows, strict=False)]),
        visual_features=_features(parts),
        visual_boxes=torch.cat([part.visual_boxes for part in parts]),
        hidden=torch.cat([part.hidden + first for part, first in zip(parts, shown, strict=False)]),
        hidden_rows=torch.cat([_move(part, first, rows[-1]) for part, first in zip(parts, rows, strict=False)]),
        targets={},
        tokens=sum(part.tokens for part in parts),
        embedded_rows=rows[-1],
        longest=max(part.longest for part in parts),
        samples=sum(part.samples for part in parts),
        names=[name for part in parts for name in part.names],
        bad=[line for part in parts for line in part.bad],
        counts={},
        hard=None,
    )
    return Joined(whole, parts, scales)


def _move(part: Batch, first: int, total: int) -> Tensor:
    """Return `hidden_rows` of a part, the rows of which begin at `first` of `total`; rows of the embedder stay behind all."""
    rows = part.hidden_rows
    if not len(rows):
        return rows
    return torch.where(rows < part.embedded_rows, rows + first, rows + (total - part.embedded_rows))


def _features(parts: Sequence[Batch]) -> Tensor:
    """Lay the features of the parts that have any end to end."""
    every = [part.visual_features for part in parts if len(part.visual_features)]
    kinds = {(features.dtype, features.shape[1:]) for features in every}
    if len(kinds) > 1:
        raise OneRankError(
            f"run.join_turns: the turns of a step show pictures in forms that no one micro-batch holds ({_words(kinds)}); set it "
            "to false, or give all objectives sources of one kind"
        )
    return (torch.cat(every) if len(every) > 1 else every[0]) if every else parts[0].visual_features


def _words(kinds: Iterable[tuple[torch.dtype, torch.Size]]) -> str:
    return ", ".join(sorted(f"{dtype} {tuple(shape)}".removeprefix("torch.") for dtype, shape in kinds))
