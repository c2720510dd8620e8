"""`bias_gelu` in Triton: one kernel forward, and one backward that makes the gradients of input and bias in one pass.

Numbers that move for a row of F: forward 2F, as by torch's GELU behind a multiplication that adds the bias itself; backward 3F,
where torch moves 4F, since it reads the gradient of the input once more to sum it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from m3p.kernels.first_order import first_order
from m3p.kernels.launch import on_gpu_of

PROGRAMS = 256
"""Of the backward, for each block of columns: each adds up the gradient of the bias over its rows."""
ROWS, BLOCK = 4, 512
"""Rows and columns that a program holds at once."""


@triton.jit
def biased(x, bias, places, inside, columns, in_row):  # type: ignore[no-untyped-def]
    """Return `x` + `bias` at `places` in float32, rounded as the plain form rounds it."""
    z = tl.load(x + places, inside, other=0.0).to(tl.float32)
    z += tl.load(bias + columns, in_row, other=0.0).to(tl.float32)[None, :]
    return z.to(x.dtype.element_ty).to(tl.float32)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def forward_kernel(  # type: ignore[no-untyped-def]
    x, bias, out, rows, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """`x` and `out` [rows, width], `bias` [width]. Programs: blocks of rows, blocks of columns."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_row = columns < width
    inside = (row < rows)[:, None] & in_row[None, :]
    places = row.to(tl.int64)[:, None] * width + columns[None, :]
    z = biased(x, bias, places, inside, columns, in_row)
    tl.store(out + places, 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476)), inside)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def backward_kernel(  # type: ignore[no-untyped-def]
    upstream, x, bias, grad_x, grad_bias, rows, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """As in `forward_kernel`; `grad_bias` [programs, width] float32, one row a program of the first axis."""
    program = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_row = columns < width
    of_bias = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(program * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & in_row[None, :]
        places = row.to(tl.int64)[:, None] * width + columns[None, :]
        z = biased(x, bias, places, inside, columns, in_row)
        below = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        dz = tl.load(upstream + places, inside, other=0.0).to(tl.float32) * (below + z * density)
        tl.store(grad_x + places, dz, inside)
        of_bias += dz
    tl.store(grad_bias + program.to(tl.int64) * width + columns, tl.sum(of_bias, 0), in_row)


def bias_gelu_triton(x: Tensor, bias: Tensor) -> Tensor:
    """As `bias_gelu`."""
    out: Tensor = _BiasGelu.apply(x.contiguous(), bias.contiguous())  # type: ignore[no-untyped-call]
    return out


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        rows, width = x.shape
        out = torch.empty_like(x)
        grid = max(1, triton.cdiv(rows, ROWS)), triton.cdiv(width, BLOCK)
        with on_gpu_of(x):
            forward_kernel[grid](x, bias, out, rows, width, ROWS=ROWS, BLOCK=BLOCK)
        ctx.save_for_backward(x, bias)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        rows, width = x.shape
        grad_x = torch.empty_like(x)
        programs = max(1, min(triton.cdiv(rows, ROWS), PROGRAMS))
        sums = torch.empty(programs, width, dtype=torch.float32, device=x.device)
        grid, up = (programs, triton.cdiv(width, BLOCK)), upstream[0].contiguous()
        with on_gpu_of(x):
            backward_kernel[grid](up, x, bias, grad_x, sums, rows, width, ROWS=ROWS, BLOCK=BLOCK)
        return grad_x, sums.sum(0).to(bias.dtype)
