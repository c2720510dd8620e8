"""Feed-forward with its GELU inside the multiplications before and behind it, by the package quack-kernels (Hopper and later).

Of its module `gemm_interface`, `gemm_act` multiplies, adds the bias and takes the exact GELU ("gelu_erf") of the sum in float32
before it is rounded; `gemm_dact` makes in one multiplication the gradient of GELU's input and, again, GELU's output, which is
therefore not kept. The other multiplications are torch's. The interface is that of the version in kernels/obstacles.py.

Numbers that move for a slot of inner width F between the multiplications: forward 2F, where torch moves 3F; backward 4F with the
sum of the bias' gradient, where torch moves 5F. F numbers are kept for the backward, where torch keeps 2F.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m3p.kernels.first_order import first_order
from m3p.kernels.launch import on_gpu_of

EXACT = "gelu_erf"
"""QuACK's name of GELU by the error function (arXiv 1606.08415); its "gelu_tanh_approx" is another function."""


def feed_forward_quack(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor | None) -> Tensor:
    """Return GELU(`x` `up`^T + `up_bias`) `down`^T + `down_bias`: x [T, width] -> [T, width].

    `up` [F, width] and `down` [width, F], as in torch's linear layers; all in bfloat16 or float16, on a GPU.
    """
    if torch.is_grad_enabled():
        out: Tensor = _FeedForward.apply(x.contiguous(), up, up_bias, down, down_bias)  # type: ignore[no-untyped-call]
        return out
    return F.linear(_widen(x.contiguous(), up, up_bias, keep=False)[1], down, down_bias)


def _widen(x: Tensor, up: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor | None, Tensor]:
    """Return GELU's input [T, F], where it is to be kept, and its output [T, F]."""
    from quack.gemm_interface import gemm_act

    # `tuned` would try out configurations anew for each number of slots, and hardly two micro-batches have the same.
    with on_gpu_of(x):
        before, after = gemm_act(x, up.T, bias=bias, activation=EXACT, store_preact=keep, tuned=False)
    return before, after


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor | None) -> Tensor:
        before, after = _widen(x, up, up_bias, keep=True)
        ctx.save_for_backward(x, up, down, before)
        return F.linear(after, down, down_bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        from quack.gemm_interface import gemm_dact

        x, up, down, before = ctx.saved_tensors
        of_x, of_up, of_up_bias, of_down, of_down_bias = ctx.needs_input_grad
        grad_out = upstream[0].contiguous()
        with on_gpu_of(x):
            grad_before, after = gemm_dact(grad_out, down, before, activation=EXACT, tuned=False)
        return (
            grad_before @ up if of_x else None,
            grad_before.T @ x if of_up else None,
            grad_before.sum(0) if of_up_bias else None,
            grad_out.T @ after if of_down else None,
            grad_out.sum(0) if of_down_bias else None,
        )
