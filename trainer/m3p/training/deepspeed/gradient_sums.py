"""Gradients of micro-batches are summed in float32, also where the network is in 16 bits.

DeepSpeed 0.19 sums in the network's own format unless told otherwise: a micro-batch below 1/256 of a bf16 sum then vanishes.
The setting `data_types.grad_accum_dtype` cures it in stages 2 and 3. In stage 1 with bf16 it makes DeepSpeed take another
optimizer class, which keeps whole float32 gradients on every rank for good and which checkpoints do not know; its ZeRO
optimizer does the same sums. Stage 0 refuses the setting, so there the sums are kept here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepspeed.runtime.engine import DeepSpeedEngine as Library
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn


@contextmanager
def zero_optimizer_in_stage_1() -> Iterator[None]:
    """Inside the block, `deepspeed.initialize` takes its ZeRO optimizer in stage 1 with float32 sums, as in stage 2."""
    from deepspeed.runtime import engine

    real = Library._do_optimizer_sanity_check

    def check(self: Any, optimizer: Any) -> Any:
        wanted = real(self, optimizer)
        return engine.ZERO_OPTIMIZATION if wanted == engine.BFLOAT16 else wanted

    Library._do_optimizer_sanity_check = check
    try:
        yield
    finally:
        Library._do_optimizer_sanity_check = real


def forget_dropped_sums(zero: Any) -> None:
    """Make the optimizer `zero` of a DeepSpeed engine forget the gradients of a step that makes no update.

    In stages 1 and 2 with offloading DeepSpeed keeps its float32 sums then, and adds those of the next step to them: after one
    gradient that is not finite no sum is ever finite again, and no step makes an update. Other optimizers stay as they are.
    """
    if not isinstance(zero, DeepSpeedZeroOptimizer) or not zero.cpu_offload:
        return
    real = zero.reset_cpu_buffers

    def reset() -> None:
        real()
        zero.averaged_gradients.update(dict.fromkeys(zero.averaged_gradients))

    zero.reset_cpu_buffers = reset


class GradientSums:
    """Keeps the float32 sums of stage 0 in 16 bits. Made before `deepspeed.initialize`, so that its hooks come first.

    After each backward but a step's last, a parameter's gradient is added to its sum and removed. After the last one, the
    whole sum stands in its place, rounded once.
    """

    def __init__(self, network: nn.Module) -> None:
        self.last = False
        """Whether the backward that comes next is the last one of its step."""
        self._sums: dict[Tensor, Tensor] = {}
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._take)  # type: ignore[no-untyped-call]

    def _take(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if not self.last:
            if parameter in self._sums:
                self._sums[parameter].add_(gradient)
            else:
                self._sums[parameter] = gradient.float()
            parameter.grad = None
        elif parameter in self._sums:
            gradient.copy_(self._sums.pop(parameter).add_(gradient))
