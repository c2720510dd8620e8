"""Dropout, residual and layer norm in one: what stands behind attention and feed-forward of a post-layer-norm encoder."""

from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Twice(NamedTuple):
    """A tensor [T, width] for two operations: its gradients by both are added by what made the tensor, and not by autograd."""

    value: Tensor
    residual: Tensor
    """The same numbers."""


def apart(x: Tensor | Twice) -> Twice:
    """Return `x` for two operations; of a plain tensor autograd adds the gradients."""
    return x if isinstance(x, Twice) else Twice(x, x)


def residual_norm(
    x: Tensor,
    added: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout: float,
    kernel: str = "torch",
    added_bias: Tensor | None = None,
) -> Tensor:
    """Return the layer norm of `x` + dropout(`added` + `added_bias`), [T, width]; `weight` and biases [width].

    `kernel` is "torch", "apex" for NVIDIA's layer norm, or "triton" for one that reads and writes each number once and
    draws its dropout again in the backward instead of keeping it (both on a GPU).
    """
    if kernel == "triton":
        from m3p.kernels.residual_norm_triton import residual_norm_triton

        return residual_norm_triton(x, added, weight, bias, eps, dropout, added_bias).value
    added = added if added_bias is None else added + added_bias
    summed = x + (F.dropout(added, dropout) if dropout else added)
    if kernel == "apex":
        normed: Tensor = _apex().fused_layer_norm_affine(summed, weight, bias, weight.shape, eps)
        return normed
    return F.layer_norm(summed, weight.shape, weight, bias, eps)


@cache
def _apex() -> Any:
    return import_module("apex.normalization.fused_layer_norm")
