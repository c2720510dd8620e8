"""Cross-entropy of a linear layer over a large vocabulary, without a tensor of [rows, vocabulary].

A few rows at a time: their logits, their loss, and, while the logits are there, both gradients. Nothing is filtered or
rounded away, so the gradients are those of the plain form. Taking the gradients in the forward is Liger's idea
(arXiv 2410.10989): three multiplications instead of four, and the backward needs no weight, which suits ZeRO-3.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m3p.kernels.first_order import first_order

CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
"""Bytes of float32 logits that exist at once. On a GPU enough rows to fill it; on a CPU more is slower."""


def linear_cross_entropy(
    rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, chunk_rows: int | None = None, kernel: str | None = None
) -> Tensor:
    """Return the cross-entropy of `rows` @ `weight`.T + `bias` against `labels`, summed over rows, float32 or wider.

    Args:
        rows: [M, width], of the same type as `weight`.
        weight: [vocabulary, width].
        bias: [vocabulary].
        labels: [M] int64.
        chunk_rows: rows whose logits exist at once; by default as many as `CHUNK_BYTES` holds.
        kernel: "triton" or "torch" for what happens to a chunk of logits; by default Triton on a GPU.
    """
    return _apply(rows, weight, bias, labels, None, chunk_rows, kernel)[0]


def weighted_cross_entropy(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    factors: Tensor,
    chunk_rows: int | None = None,
    kernel: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sum of the rows' cross-entropies times `factors` [M], and the cross-entropies themselves [M].

    The gradient flows through the sum alone. Other arguments and types are as in `linear_cross_entropy`.
    """
    return _apply(rows, weight, bias, labels, factors, chunk_rows, kernel)


def _apply(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    factors: Tensor | None,
    chunk_rows: int | None,
    kernel: str | None,
) -> tuple[Tensor, Tensor]:
    if rows.dtype == torch.float16:
        # Gradients taken in the forward know no loss scale yet: in 16 bits of this kind they would underflow.
        rows, weight, bias = rows.float(), weight.float(), bias.float()
    arguments = rows, weight, bias, labels, factors, chunk_rows, kernel, torch.is_grad_enabled()
    loss, losses = _LinearCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss, losses


def linear_cross_entropy_reference(rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """The same in its plain form, which keeps all logits."""
    return F.cross_entropy(F.linear(rows, weight, bias).float(), labels, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        factors: Tensor | None,
        chunk_rows: int | None,
        kernel: str | None,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        step = chunk_rows or max(1, CHUNK_BYTES[rows.device.type] // (4 * len(weight)))
        sums = _Gradients(ctx.needs_input_grad if with_gradient else (False,) * 3, rows, weight, bias)
        losses = torch.empty(len(rows), dtype=_wide(rows.dtype), device=rows.device)
        loss = losses.new_zeros(())
        unit = ROW_UNIT[rows.device.type]
        stride = -(-len(weight) // unit) * unit
        logits = rows.new_empty(min(step, len(rows)), stride)[:, : len(weight)]
        for first in range(0, len(rows), step):
            here = slice(first, first + step)
            part, mine = rows[here], None if factors is None else factors[here]
            found, gradient = _of_chunk(logits[: len(part)], part, weight, bias, labels[here], mine, kernel)
            losses[here] = found
            loss += (found if mine is None else found * mine).sum()
            sums.add(first, part, weight, gradient)
        ctx.mark_non_differentiable(losses)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*sums.finish())
        return loss, losses

    @staticmethod
    @first_order
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # In place, since a second [vocabulary, width] would be the largest tensor here; torch refuses a second backward.
        gradients = [None if g is None else g.mul_(upstream[0]) for g in ctx.saved_tensors]
        return (*gradients, None, None, None, None, None)


class _Gradients:
    """Sums of the gradients over chunks, float32 where the weights are 16-bit."""

    def __init__(self, needed: tuple[bool, ...], rows: Tensor, weight: Tensor, bias: Tensor) -> None:
        self._types = rows.dtype, weight.dtype, bias.dtype
        self._rows = torch.empty_like(rows) if needed[0] else None
        # The first chunk overwrites it.
        make = torch.empty_like if len(rows) else torch.zeros_like
        self._weight = make(weight, dtype=_wide(weight.dtype)) if needed[1] else None
        self._bias = torch.zeros_like(bias, dtype=_wide(bias.dtype)) if needed[2] else None

    def add(self, first: int, part: Tensor, weight: Tensor, gradient: Tensor) -> None:
        """Add what the chunk `part` [C, width], which begins at row `first`, gives by its `gradient` [C, vocabulary]."""
        if self._rows is not None:
            torch.mm(gradient, weight, out=self._rows[first : first + len(part)])
        if self._bias is not None:
            self._bias += gradient.sum(0, dtype=self._bias.dtype)
        if self._weight is None:
            return
        if self._weight.dtype == gradient.dtype:
            self._weight.addmm_(gradient.T, part, beta=int(first > 0))
            return
        # A slice of the vocabulary at a time, so that the 16-bit product stays small beside the sum.
        for word in range(0, len(self._weight), SLICE):
            product = gradient[:, word : word + SLICE].T @ part
            target = self._weight[word : word + SLICE]
            target.copy_(product) if first == 0 else target.add_(product)

    def finish(self) -> tuple[Tensor | None, ...]:
        """Return the gradients in the types of what they belong to."""
        sums = self._rows, self._weight, self._bias
        return tuple(None if g is None else g.to(kind) for g, kind in zip(sums, self._types, strict=True))


ROW_UNIT = {"cpu": 1, "cuda": 8}
"""Rows of logits begin at multiples of so many numbers. In 16 bits 8 are 16 bytes, without which a GPU has no fast
multiplication for 250,002 columns; a CPU is slower with a gap between rows."""
SLICE = 32_768
"""Words whose weight gradient is made at once in 16 bits."""


def _wide(kind: torch.dtype) -> torch.dtype:
    return torch.float32 if kind == torch.bfloat16 else kind


def _of_chunk(
    logits: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    factors: Tensor | None,
    kernel: str | None,
) -> tuple[Tensor, Tensor]:
    """Return the loss of each of `rows` [C, width], and the gradient with respect to its logits [C, vocabulary].

    `factors` [C] multiply the gradients of rows. `logits` is where they are made. `kernel` as in `linear_cross_entropy`; Triton's
    adds the bias in its two passes over a row.
    """
    if (kernel or ("triton" if logits.is_cuda else "torch")) == "triton":
        from m3p.kernels.cross_entropy_triton import loss_and_gradient_triton

        torch.mm(rows, weight.T, out=logits)
        return loss_and_gradient_triton(logits, bias, labels, factors)
    torch.addmm(bias, rows, weight.T, out=logits)
    return loss_and_gradient_reference(logits, labels, factors)


def loss_and_gradient_reference(logits: Tensor, labels: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the loss of each row [C], float32 or wider, and the gradient with respect to `logits` [C, vocabulary], in place.

    The gradient of a row is multiplied by its one of `factors` [C], where these are given.
    """
    wide = logits.to(_wide(logits.dtype))
    torch.log_softmax(wide, 1, out=wide)
    losses = -wide.gather(1, labels[:, None])[:, 0]
    wide.exp_()
    wide[torch.arange(len(labels), device=labels.device), labels] -= 1
    if factors is not None:
        wide.mul_(factors[:, None])
    return losses, wide.to(logits.dtype)
