"""The gradient's norm in a few kernels, where DeepSpeed 0.19 takes ten for every parameter.

Before its update it looks through all gradients for numbers that are not finite, one tensor after the other, and then takes
norms in the same way: on a GPU thousands of small kernels during which there is nothing else to do, some 80 ms of a step of
the published size on an H200 (under a profiler). The norm alone tells as much, and DeepSpeed asks it too.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from m3p.distributed import all_reduce_sum

INVALID = -1.0
"""What DeepSpeed's norms are where a number is not finite: it then makes no update."""


def take_norms_at_once(zero: Any) -> None:
    """Make the optimizer `zero` of a DeepSpeed engine of stage 1, 2 or 3 use `gradient_norm`.

    Others stay as they are, and so do those that offload, or take no norm because their settings file says so.
    """
    if isinstance(zero, DeepSpeedZeroOptimizer) and zero.compute_grad_norm and not zero.cpu_offload:
        zero.check_overflow = _leave_to_the_norm
        zero.scaled_global_norm = partial(_norm_of_groups, zero)
    if isinstance(zero, DeepSpeedZeroOptimizer_Stage3) and not zero.offload_optimizer:
        zero.get_grad_norm_direct = partial(gradient_norm, zero.device)


def gradient_norm(device: Any, gradients: Sequence[Tensor], params: object = None) -> Tensor:
    """Return the 2-norm of all ranks' `gradients`, a float32 on `device`; `INVALID` where it is not finite.

    Every rank calls it. `params` is what DeepSpeed names besides.
    """
    (total,) = group_norms(device, [gradients]).unbind()
    return torch.where(total.isfinite(), total, INVALID)


def group_norms(device: Any, groups: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the 2-norm of each of `groups`, all ranks' gradients together, float32 on `device`, in one collective: [groups].

    Every rank calls it; one with few parameters may hold nothing of a group.
    """
    every = [gradient for group in groups for gradient in group]
    norms = torch._foreach_norm(every, 2, dtype=torch.float32) if every else []
    squares = torch.stack([*norms, torch.zeros((), device=device)]).double().square()
    parts = torch.split(squares, [*map(len, groups), 1])[: len(groups)]
    return all_reduce_sum(torch.stack([part.sum() for part in parts])).sqrt().float()


def _norm_of_groups(zero: DeepSpeedZeroOptimizer, norm_type: int = 2) -> Tensor:
    """Return the norm of all gradients of stage 1 or 2, as DeepSpeed does: of the norms of its groups; infinity for an error."""
    assert norm_type == 2, norm_type
    norms = group_norms(zero.device, [zero.averaged_gradients[number] for number in range(len(zero.bit16_groups))])
    total = torch.linalg.vector_norm(norms)
    return torch.where(total.isfinite(), total, torch.inf)


def _leave_to_the_norm(partition_gradients: bool = True) -> None:
    """Stands for DeepSpeed's look at every gradient."""
