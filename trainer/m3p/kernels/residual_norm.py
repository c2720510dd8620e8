"""Dropout, residual and layer norm in one: what stands behind attention and feed-forward of a post-layer-norm encoder."""

from functools import cache
from importlib import import_module
from typing import Any

import torch.nn.functional as F
from torch import Tensor


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

        return residual_norm_triton(x, added, weight, bias, eps, dropout, added_bias)
    added = added if added_bias is None else added + added_bias
    summed = x + (F.dropout(added, dropout) if dropout else added)
    if kernel == "apex":
        normed: Tensor = _apex().fused_layer_norm_affine(summed, weight, bias, weight.shape, eps)
        return normed
    return F.layer_norm(summed, weight.shape, weight, bias, eps)


@cache
def _apex() -> Any:
    return import_module("apex.normalization.fused_layer_norm")
