"""Where Triton starts kernels: on the current GPU, wherever the tensors lie."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def on_gpu_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Return a context in which the GPU that holds `tensor` is the current one.

    On another GPU a kernel would fail, or read the tensor across GPUs without waiting for what still writes it there. A tensor
    of the CPU, as in Triton's interpreter, changes nothing.
    """
    context: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return context
