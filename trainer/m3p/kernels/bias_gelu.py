"""GELU of a linear layer's output and its bias, in its plain form or by Triton: between the two halves of feed-forward."""

import torch.nn.functional as F
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor, kernel: str = "torch") -> Tensor:
    """Return the exact GELU (arXiv 1606.08415) of `x` + `bias`: x [T, F], bias [F] -> [T, F].

    `kernel` is "torch", or "triton" for one whose backward sums the gradient of `bias` where it makes that of `x` (on a GPU).
    """
    if kernel == "triton":
        from m3p.kernels.bias_gelu_triton import bias_gelu_triton

        return bias_gelu_triton(x, bias)
    return F.gelu(x + bias)
