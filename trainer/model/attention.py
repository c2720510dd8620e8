"""Self-attention over packed sequences: every slot attends to the slots of its own sequence alone.

Two backends of equal maths. `varlen` (CUDA, 16-bit) is torch's variable-length flash attention and touches no padding.
`grouped` (everywhere) sorts the sequences into groups of like length and pads only inside a group and only for the
attention itself; sequences of one length need no mask at all.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP_STEP = 16
"""Sequences whose lengths round up to the same multiple of this share a group (slots)."""


@dataclass(frozen=True)
class Group:
    """Sequences of like length: n sequences, padded to L slots."""

    slots: Tensor
    """[n, L] int64: slots on the packed axis; padding repeats slot 0."""
    valid: Tensor | None
    """[n, L] bool: which are real; None where all are."""


@dataclass
class Layout:
    """Where the sequences of a packed batch lie; made once a forward, used by every layer."""

    lengths: Tensor
    """[S] int64."""
    longest: int
    starts: Tensor = field(init=False)
    """[S] int64: first slot of each sequence."""
    groups: list[Group] = field(init=False)
    back: Tensor = field(init=False)
    """[T] int64: undoes the grouping."""
    cumulative: Tensor = field(init=False)
    """[S + 1] int32: the bounds that flash attention takes."""

    def __post_init__(self) -> None:
        ends = torch.cumsum(self.lengths, 0)
        self.starts = ends - self.lengths
        self.cumulative = F.pad(ends, (1, 0)).to(torch.int32)
        self.groups, self.back = [], self.starts

    def group(self) -> None:
        """Sort the sequences into groups, once; on a GPU this waits for the lengths."""
        if self.groups:
            return
        classes = (self.lengths + GROUP_STEP - 1) // GROUP_STEP
        taken = []
        for members in (torch.nonzero(classes == c).flatten() for c in torch.unique(classes).tolist()):
            lengths = self.lengths[members]
            longest = int(lengths.max())
            place = torch.arange(longest, device=lengths.device)
            valid = place < lengths[:, None]
            slots = torch.where(valid, self.starts[members, None] + place, 0)
            whole = bool(valid.all())
            self.groups.append(Group(slots, None if whole else valid))
            taken.append(slots.flatten() if whole else slots[valid])
        order = torch.cat(taken)
        self.back = torch.empty_like(order)
        self.back[order] = torch.arange(len(order), device=order.device)


def attend(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
    """Attend within each sequence. `qkv` [T, 3, heads, size] -> [T, heads, size]; `dropout` is of the weights."""
    if qkv.is_cuda and qkv.dtype in (torch.bfloat16, torch.float16) and dropout == 0.0:
        return _varlen(qkv, layout)
    return _grouped(qkv, layout, dropout)


def backend(device: torch.device, precision: torch.dtype, dropout: float) -> str:
    """Name the backend that `attend` takes, and why; for the table printed at start."""
    if device.type == "cuda" and precision in (torch.bfloat16, torch.float16) and dropout == 0.0:
        return "varlen: torch's variable-length flash attention (CUDA, 16-bit, no attention dropout)"
    why = (
        "no GPU" if device.type != "cuda" else "32-bit precision" if precision == torch.float32 else "attention dropout"
    )
    return f"grouped: torch's scaled-dot-product attention over groups of like length ({why})"


def _varlen(qkv: Tensor, layout: Layout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.unbind(1)
    bounds = layout.cumulative
    out = varlen_attn(q, k, v, bounds, bounds, layout.longest, layout.longest)
    assert isinstance(out, Tensor)
    return out


def _grouped(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
    layout.group()
    parts = []
    for group in layout.groups:
        q, k, v = qkv[group.slots].permute(2, 0, 3, 1, 4)  # each [n, heads, L, size]
        mask = None if group.valid is None else group.valid[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2)
        parts.append(out.flatten(0, 1) if group.valid is None else out[group.valid])
    return torch.cat(parts)[layout.back]
