"""`residual_norm` in Triton: one kernel forward and one backward, a row a program.

After the fused layer norms of apex and of Triton's tutorial. Which numbers are dropped follows from a seed that torch's
generator draws on the device, so that a forward repeated from a saved random state drops the same ones.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 512
"""Of the backward: each adds up the gradients of weight and bias over its rows."""


@triton.jit  # type: ignore[untyped-decorator]
def forward_kernel(  # type: ignore[no-untyped-def]
    x, added, weight, bias, seeds, total, out, mean, scale, width, eps, dropout, DROP: tl.constexpr, BLOCK: tl.constexpr  # noqa: N803
):  # fmt: skip
    """`x`, `added`, `total` (their sum) and `out` [T, width]; `seeds` [1]; `mean`, `scale` [T] float32."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    places = row.to(tl.int64) * width + columns
    h = tl.load(added + places, inside, other=0.0).to(tl.float32)
    if DROP:
        kept = tl.rand(tl.load(seeds), row * width + columns) >= dropout
        h = tl.where(kept, h / (1.0 - dropout), 0.0)
    # Rounded as the plain form rounds it.
    z = (tl.load(x + places, inside, other=0.0).to(tl.float32) + h).to(total.dtype.element_ty)
    tl.store(total + places, z, inside)
    z = z.to(tl.float32)
    middle = tl.sum(z, 0) / width
    from_middle = tl.where(inside, z - middle, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(from_middle * from_middle, 0) / width + eps)
    w = tl.load(weight + columns, inside, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, inside, other=0.0).to(tl.float32)
    tl.store(out + places, from_middle * inverse * w + b, inside)
    tl.store(mean + row, middle)
    tl.store(scale + row, inverse)


@triton.jit  # type: ignore[untyped-decorator]
def backward_kernel(  # type: ignore[no-untyped-def]
    upstream, total, weight, seeds, mean, scale, grad_x, grad_added, grad_weight, grad_bias,
    rows, width, dropout, DROP: tl.constexpr, BLOCK: tl.constexpr  # noqa: N803
):  # fmt: skip
    """As in `forward_kernel`; `grad_weight`, `grad_bias` [programs, width] float32, one row a program."""
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    w = tl.load(weight + columns, inside, other=0.0).to(tl.float32)
    of_weight = tl.zeros([BLOCK], tl.float32)
    of_bias = tl.zeros([BLOCK], tl.float32)
    for row in range(program, rows, tl.num_programs(0)):
        places = tl.cast(row, tl.int64) * width + columns
        dy = tl.load(upstream + places, inside, other=0.0).to(tl.float32)
        z = tl.load(total + places, inside, other=0.0).to(tl.float32)
        inverse = tl.load(scale + row)
        normed = tl.where(inside, (z - tl.load(mean + row)) * inverse, 0.0)
        of_weight += dy * normed
        of_bias += dy
        wdy = w * dy
        dz = (wdy - tl.sum(wdy, 0) / width - normed * (tl.sum(wdy * normed, 0) / width)) * inverse
        tl.store(grad_x + places, dz, inside)
        if DROP:
            kept = tl.rand(tl.load(seeds), row * width + columns) >= dropout
            tl.store(grad_added + places, tl.where(kept, dz / (1.0 - dropout), 0.0), inside)
    tl.store(grad_weight + program * width + columns, of_weight, inside)
    tl.store(grad_bias + program * width + columns, of_bias, inside)


def residual_norm_triton(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float) -> Tensor:
    """As `residual_norm`."""
    apply = _ResidualNorm.apply
    out: Tensor = apply(x.contiguous(), added.contiguous(), weight, bias, eps, dropout)  # type: ignore[no-untyped-call]
    return out


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float) -> Tensor:
        rows, width = x.shape
        total, out = torch.empty_like(x), torch.empty_like(x)
        mean, scale = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
        seeds = torch.randint(2**31 - 1, (1,), device=x.device) if dropout else mean
        block = triton.next_power_of_2(width)
        forward_kernel[(rows,)](
            x, added, weight, bias, seeds, total, out, mean, scale, width, eps, dropout, DROP=dropout > 0, BLOCK=block
        )
        ctx.save_for_backward(total, weight, seeds, mean, scale)
        ctx.dropout, ctx.block = dropout, block
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, seeds, mean, scale = ctx.saved_tensors
        rows, width = total.shape
        grad_x = torch.empty_like(total)
        grad_added = torch.empty_like(total) if ctx.dropout else grad_x
        programs = max(1, min(rows, PROGRAMS))
        sums = torch.empty(2, programs, width, dtype=torch.float32, device=total.device)
        backward_kernel[(programs,)](
            upstream[0].contiguous(), total, weight, seeds, mean, scale, grad_x, grad_added, sums[0], sums[1],
            rows, width, ctx.dropout, DROP=ctx.dropout > 0, BLOCK=ctx.block,
        )  # fmt: skip
        grad_weight, grad_bias = sums.sum(1).to(weight.dtype)
        return grad_x, grad_added, grad_weight, grad_bias, None, None
