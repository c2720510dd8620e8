"""Dropout, residual and layer norm in one: what stands behind attention and feed-forward of a post-layer-norm encoder."""

import torch.nn.functional as F
from torch import Tensor


def residual_norm(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float, kernel: str = "torch"
) -> Tensor:
    """Return the layer norm of `x` + dropout(`added`), both [T, width]; `weight` and `bias` [width].

    `kernel` is "torch", or "triton" for one that reads and writes each number once and draws its dropout again in the
    backward instead of keeping it (GPU).
    """
    if kernel == "triton":
        from trainer.kernels.residual_norm_triton import residual_norm_triton

        return residual_norm_triton(x, added, weight, bias, eps, dropout)
    return F.layer_norm(x + F.dropout(added, dropout, dropout > 0), weight.shape, weight, bias, eps)
