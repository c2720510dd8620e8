"""Where Triton starts kernels: on the current GPU, wherever the tensors lie.

Triton compiles a kernel anew where a number becomes 1 or a multiple of 16, and where a tensor begins at another multiple of 16
bytes: a second or more, in the middle of a run, and all ranks wait for the one. Kernels name what changes from step to step in
`do_not_specialize` and `do_not_specialize_on_alignment`.
"""

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
