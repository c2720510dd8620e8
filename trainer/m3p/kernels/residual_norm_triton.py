"""`residual_norm` in Triton: one kernel forward and one backward, a few rows a program.

After the fused layer norms of apex and of Triton's tutorial. Which numbers are dropped follows from a seed that torch's
generator draws on the device, so that a forward repeated from a saved random state drops the same ones. One draw of Philox
serves eight numbers, 16 bits each: a draw for each number costs more than all else that the kernel does. The bias of what is
added is added here, and its gradient summed here, where the numbers are at hand anyway. And where two operations use the norm, as
the next linear layer and the next residual do, their gradients are added here: autograd would read both and write their sum.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from m3p.kernels.first_order import first_order
from m3p.kernels.launch import on_gpu_of
from m3p.kernels.residual_norm import Twice

PROGRAMS = 1024
"""Of the backward: each adds up the gradients of weight and biases over its rows."""
FORWARD_ROWS, BACKWARD_ROWS = 4, 2
"""Rows that a program holds at once: loads of one row are under way while another one is summed."""
SIXTEEN_BITS = 1 << 16
SMALLEST_BLOCK = 8
"""Numbers that one draw serves."""


@triton.jit  # type: ignore[untyped-decorator]
def kept_mask(seeds, rows, width, threshold, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Return which numbers of `rows` [ROWS] stay, [ROWS, BLOCK]: each where 16 bits of its own are `threshold` or more."""
    draws = rows[:, None] * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None, :]
    first, second, third, fourth = tl.randint4x(tl.load(seeds), draws, n_rounds=7)
    words = tl.join(tl.join(first, second), tl.join(third, fourth)).to(tl.uint32, bitcast=True)
    halves = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(halves, [ROWS, BLOCK]).to(tl.int32) >= threshold


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["scale"])  # type: ignore[untyped-decorator]
def forward_kernel(  # type: ignore[no-untyped-def]
    x, added, added_bias, weight, bias, seeds, total, out, mean, scale, rows, width, eps, threshold, factor,
    BIASED: tl.constexpr, DROP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """`x`, `added`, `total` (their sum) and `out` [T, width]; `added_bias` [width]; `seeds` [1]; `mean`, `scale` [T] float32.

    `factor` is what numbers that are not dropped are multiplied by.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    in_row, in_rows = columns < width, row < rows
    inside = in_rows[:, None] & in_row[None, :]
    places = row.to(tl.int64)[:, None] * width + columns[None, :]
    h = tl.load(added + places, inside, other=0.0).to(tl.float32)
    if BIASED:
        h += tl.load(added_bias + columns, in_row, other=0.0).to(tl.float32)[None, :]
        h = h.to(total.dtype.element_ty).to(tl.float32)  # rounded as the plain form rounds it, here and below
    if DROP:
        h = tl.where(kept_mask(seeds, row, width, threshold, ROWS, BLOCK), h * factor, 0.0)
    z = (tl.load(x + places, inside, other=0.0).to(tl.float32) + h).to(total.dtype.element_ty)
    tl.store(total + places, z, inside)
    z = tl.where(inside, z.to(tl.float32), 0.0)
    middle = tl.sum(z, 1) / width
    from_middle = tl.where(inside, z - middle[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(from_middle * from_middle, 1) / width + eps)
    w = tl.load(weight + columns, in_row, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, in_row, other=0.0).to(tl.float32)
    tl.store(out + places, from_middle * inverse[:, None] * w[None, :] + b[None, :], inside)
    tl.store(mean + row, middle, in_rows)
    tl.store(scale + row, inverse, in_rows)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["scale"])  # type: ignore[untyped-decorator]
def backward_kernel(  # type: ignore[no-untyped-def]
    upstream, more, total, weight, seeds, mean, scale, grad_x, grad_added, grad_weight, grad_bias, grad_added_bias,
    rows, width, threshold, factor,
    TWICE: tl.constexpr, BIASED: tl.constexpr, DROP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """As in `forward_kernel`; the gradients of `weight` and biases [programs, width] float32, one row a program.

    `upstream` [T, width] is the gradient of the norm, or of one of its two uses: then `more` is that of the other.
    """
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    in_row = columns < width
    w = tl.load(weight + columns, in_row, other=0.0).to(tl.float32)
    of_weight = tl.zeros([ROWS, BLOCK], tl.float32)
    of_bias = tl.zeros([ROWS, BLOCK], tl.float32)
    of_added = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(program * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        in_rows = row < rows
        inside = in_rows[:, None] & in_row[None, :]
        places = row.to(tl.int64)[:, None] * width + columns[None, :]
        dy = tl.load(upstream + places, inside, other=0.0).to(tl.float32)
        if TWICE:
            dy += tl.load(more + places, inside, other=0.0).to(tl.float32)
        z = tl.load(total + places, inside, other=0.0).to(tl.float32)
        inverse = tl.load(scale + row, in_rows, other=0.0)
        middle = tl.load(mean + row, in_rows, other=0.0)
        normed = tl.where(inside, (z - middle[:, None]) * inverse[:, None], 0.0)
        of_weight += dy * normed
        of_bias += dy
        wdy = w[None, :] * dy
        along = normed * (tl.sum(wdy * normed, 1) / width)[:, None]
        dz = tl.where(inside, (wdy - (tl.sum(wdy, 1) / width)[:, None] - along) * inverse[:, None], 0.0)
        tl.store(grad_x + places, dz, inside)
        if DROP:
            dz = tl.where(kept_mask(seeds, row, width, threshold, ROWS, BLOCK), dz * factor, 0.0)
            tl.store(grad_added + places, dz, inside)
        if BIASED:
            of_added += dz
    tl.store(grad_weight + program * width + columns, tl.sum(of_weight, 0), in_row)
    tl.store(grad_bias + program * width + columns, tl.sum(of_bias, 0), in_row)
    if BIASED:
        tl.store(grad_added_bias + program * width + columns, tl.sum(of_added, 0), in_row)


def residual_norm_triton(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float, added_bias: Tensor | None
) -> Twice:
    """As `residual_norm`, for two operations; numbers are dropped with the chance nearest to `dropout` that 16 bits give."""
    threshold = round(dropout * SIXTEEN_BITS)
    tensors = (None if one is None else one.contiguous() for one in (x, added, added_bias, weight, bias))
    return Twice(*_ResidualNorm.apply(*tensors, eps, threshold))  # type: ignore[no-untyped-call]


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        added: Tensor,
        added_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        threshold: int,
    ) -> tuple[Tensor, Tensor]:
        rows, width = x.shape
        total, out = torch.empty_like(x), torch.empty_like(x)
        mean, scale = torch.empty(2, rows, dtype=torch.float32, device=x.device)
        drops, biased = threshold > 0, added_bias is not None
        seeds = torch.randint(2**31 - 1, (1,), device=x.device) if drops else mean
        shape = {"ROWS": FORWARD_ROWS, "BLOCK": max(SMALLEST_BLOCK, triton.next_power_of_2(width))}
        factor = SIXTEEN_BITS / max(1, SIXTEEN_BITS - threshold)  # of none, where all are dropped
        with on_gpu_of(x):
            forward_kernel[(triton.cdiv(rows, FORWARD_ROWS),)](
                x, added, added_bias if biased else weight, weight, bias, seeds, total, out, mean, scale,
                rows, width, eps, threshold, factor, BIASED=biased, DROP=drops, **shape,
            )  # fmt: skip
        ctx.save_for_backward(total, weight, seeds, mean, scale)
        ctx.set_materialize_grads(False)
        ctx.threshold, ctx.factor, ctx.biased, ctx.block = threshold, factor, biased, shape["BLOCK"]
        return out, out.detach()

    @staticmethod
    @first_order
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight, seeds, mean, scale = ctx.saved_tensors
        first, *more = [one.contiguous() for one in upstream if one is not None]
        rows, width = total.shape
        drops = ctx.threshold > 0
        grad_x = torch.empty_like(total)
        grad_added = torch.empty_like(total) if drops else grad_x
        programs = max(1, min(triton.cdiv(rows, BACKWARD_ROWS), PROGRAMS))
        sums = torch.empty(3 if ctx.biased else 2, programs, width, dtype=torch.float32, device=total.device)
        shape = {"ROWS": BACKWARD_ROWS, "BLOCK": ctx.block}
        with on_gpu_of(total):
            backward_kernel[(programs,)](
                first, more[0] if more else first, total, weight, seeds, mean, scale,
                grad_x, grad_added, sums[0], sums[1], sums[-1],
                rows, width, ctx.threshold, ctx.factor, TWICE=bool(more), BIASED=ctx.biased, DROP=drops, **shape,
            )  # fmt: skip
        grad_weight, grad_bias, *grad_added_bias = sums.sum(1).to(weight.dtype)
        return grad_x, grad_added, grad_added_bias[0] if ctx.biased else None, grad_weight, grad_bias, None, None
