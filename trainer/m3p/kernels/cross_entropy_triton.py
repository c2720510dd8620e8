"""Loss and gradient of a chunk of logits in one Triton kernel: what `linear_cross_entropy` runs on a GPU.

One program a row. The first pass takes maximum and sum of exponentials together (arXiv 1805.02867), the second writes
the gradient over the logits. The bias is added here, where logits are read anyway: a multiplication that adds it to rows
which do not lie end to end writes it out for every row first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from m3p.kernels.launch import on_gpu_of

BLOCK = 8192


@triton.jit(do_not_specialize_on_alignment=["labels", "factors"])  # type: ignore[untyped-decorator]
def cross_entropy_kernel(  # type: ignore[no-untyped-def]
    logits,
    bias,
    labels,
    factors,
    losses,
    vocabulary,
    stride,
    WEIGHTED: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """`logits` [C, vocabulary] without `bias` [vocabulary], rows `stride` apart; `labels` [C] int64, `losses` [C] float32.

    `factors` [C] float32 multiply the gradients of rows, where WEIGHTED. The loss of a label that is no word is not a number.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    label = tl.load(labels + row)
    known = (label >= 0) & (label < vocabulary)
    wanted = tl.load(logits + label, known, other=float("nan")).to(tl.float32)
    wanted += tl.load(bias + label, known, other=0.0).to(tl.float32)
    columns = tl.arange(0, BLOCK)
    largest = -float("inf")
    total = 0.0
    for first in range(0, vocabulary, BLOCK):
        inside = first + columns < vocabulary
        x = tl.load(logits + first + columns, inside, other=-float("inf")).to(tl.float32)
        x += tl.load(bias + first + columns, inside, other=0.0).to(tl.float32)
        new = tl.maximum(largest, tl.max(x))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(x - new))
        largest = new
    tl.store(losses + row, tl.log(total) + largest - wanted)
    factor = 1.0
    if WEIGHTED:
        factor = tl.load(factors + row)
    for first in range(0, vocabulary, BLOCK):
        inside = first + columns < vocabulary
        x = tl.load(logits + first + columns, inside, other=-float("inf")).to(tl.float32)
        x += tl.load(bias + first + columns, inside, other=0.0).to(tl.float32)
        gradient = tl.exp(x - largest) / total - tl.where(first + columns == label, 1.0, 0.0)
        tl.store(logits + first + columns, gradient * factor, inside)


def loss_and_gradient_triton(
    logits: Tensor, bias: Tensor, labels: Tensor, factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `loss_and_gradient_reference` of `logits` + `bias` [vocabulary]."""
    assert logits.stride(1) == 1, "columns lie side by side"
    labels, bias = labels.contiguous(), bias.contiguous()
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    weighted = factors is not None
    with on_gpu_of(logits):
        cross_entropy_kernel[(len(logits),)](
            logits, bias, labels, losses if factors is None else factors.contiguous(), losses, logits.shape[1], logits.stride(0),
            WEIGHTED=weighted, BLOCK=BLOCK, num_warps=16,
        )  # fmt: skip
    return losses, logits
