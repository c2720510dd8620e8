"""Self-attention over packed sequences: every slot attends to the slots of its own sequence alone.

Backends of equal maths. `varlen` (CUDA, 16-bit) is torch's variable-length flash attention, `flash_attn` that of the
package of this name (arXiv 2307.08691). `grouped` (everywhere) has the sequences lie in the order of their lengths, so
that those of one length are one dense tensor, without a copy. `triton` (CUDA) is a kernel of our own for short sequences, which
adds numbers in one order only. `fa4` (Hopper and later, 16-bit) is FlashAttention 4, of the package flash-attn-4. None pads.
`kernels/choice.py` chooses.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from m3p.kernels.choice import automatic_attention
from m3p.kernels.launch import on_gpu_of


@dataclass
class Layout:
    """Where the sequences of a packed batch lie; made once a forward, used by every layer."""

    lengths: Tensor
    """[S] int64."""
    longest: int
    """At least the largest of `lengths`: that of flash attention's tiles."""
    backend: str | None = None
    """Of attention; where None, `arrange` takes what `auto` would."""
    starts: Tensor = field(init=False)
    """[S] int64: first slot of each sequence."""
    groups: list[tuple[int, int]] = field(init=False)
    """Once arranged: (number of sequences, their length) for each length that occurs, in rising order."""
    order: Tensor | None = field(init=False)
    """Once arranged: [T] int64, the slots in the order of their sequences' lengths."""

    def __post_init__(self) -> None:
        self.starts = torch.cumsum(self.lengths, 0) - self.lengths
        self.groups, self.order = [], None

    @cached_property
    def cumulative(self) -> Tensor:
        """[S + 1] int32: the bounds that flash attention takes."""
        return F.pad(torch.cumsum(self.lengths, 0), (1, 0)).to(torch.int32)

    def arrange(self, x: Tensor, head_size: int = 64) -> Tensor:
        """Put `x` [T, width] into the order that `attend` wants of these sequences; on a GPU `grouped` waits for the lengths.

        `head_size`, the numbers of an attention head, says with device and precision what `auto` would take.
        """
        self.backend = self.backend or automatic_attention(x.device, x.dtype, head_size)
        if self.backend != "grouped":
            return x
        if self.order is None:
            lengths, sequences = torch.sort(self.lengths, stable=True)
            firsts = self.starts[sequences] - torch.cumsum(lengths, 0) + lengths
            owner = torch.repeat_interleave(torch.arange(len(lengths), device=x.device), lengths, output_size=len(x))
            self.order = torch.arange(len(x), device=x.device) + firsts[owner]
            found, counts = torch.unique_consecutive(lengths, return_counts=True)
            self.groups = list(zip(counts.tolist(), found.tolist(), strict=True))
            # Flash attention would leave out what lies behind `longest`, without a word; here the lengths are known.
            assert all(length <= self.longest for _, length in self.groups[-1:]), (self.groups[-1], self.longest)
        return x.index_select(0, self.order)

    def restore(self, x: Tensor) -> Tensor:
        """Undo `arrange`."""
        if self.order is None:
            return x
        back = torch.empty_like(self.order)
        back[self.order] = torch.arange(len(back), device=back.device)
        return x.index_select(0, back)


def attend(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
    """Attend within each sequence. `qkv` [T, 3, heads, size], arranged -> [T, heads, size]; `dropout` is of the weights."""
    if layout.backend == "varlen":
        return _varlen(qkv, layout, dropout)
    if layout.backend == "triton":
        return _triton(qkv, layout, dropout)
    if layout.backend == "fa4":
        return _fa4(qkv, layout, dropout)
    return _flash_attn(qkv, layout, dropout) if layout.backend == "flash_attn" else _grouped(qkv, layout, dropout)


def _varlen(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
    # What `torch.nn.attention.varlen_attn` calls, without the Python that takes longer than many a kernel, and with dropout.
    q, k, v = qkv.unbind(1)
    bounds, longest = layout.cumulative, layout.longest
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, bounds, bounds, longest, longest, dropout, is_causal=False, return_debug_mask=False
    )[0]
    return out


def _flash_attn(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
    from flash_attn import flash_attn_varlen_qkvpacked_func

    out = flash_attn_varlen_qkvpacked_func(qkv, layout.cumulative, layout.longest, dropout_p=dropout)
    assert isinstance(out, Tensor)
    return out


def _triton(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
    from m3p.kernels.attention_triton import attention_triton

    assert dropout == 0, "kernels/obstacles.py refuses it"
    return attention_triton(qkv, layout.starts, layout.lengths)


def _fa4(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
    # The package's own function. torch.nn.attention.activate_flash_attention_impl("FA4") would put it in the place of torch's
    # flash attention in the whole process: in that of `varlen` and `grouped`, and of a vision tower, with dropout or without.
    from flash_attn.cute import flash_attn_varlen_func

    assert dropout == 0, "kernels/obstacles.py refuses it"
    q, k, v = qkv.unbind(1)
    bounds, longest = layout.cumulative, layout.longest
    with on_gpu_of(qkv):
        out, _ = flash_attn_varlen_func(
            q, k, v, cu_seqlens_q=bounds, cu_seqlens_k=bounds, max_seqlen_q=longest, max_seqlen_k=longest
        )
    assert isinstance(out, Tensor)
    return out


def _grouped(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
    parts = []
    # `split` and not slices: the gradient of a slice is as large as what it is cut from.
    sizes = [number * length for number, length in layout.groups]
    for part, (number, length) in zip(torch.split(qkv, sizes), layout.groups, strict=True):
        q, k, v = part.view(number, length, *part.shape[1:]).permute(
            2, 0, 3, 1, 4
        )  # each [number, heads, length, size]
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts) if len(parts) > 1 else parts[0]
