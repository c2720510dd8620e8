"""Weights stay the views of DeepSpeed's flat buffer that they are.

After every update, DeepSpeed 0.19 makes each weight a view of its flat buffer anew in stages 1 and 2: five calls of torch a
weight, during which a GPU with little to compute waits. They were views of that buffer all the time.
"""

from typing import Any

from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor


def keep_views(zero: Any) -> None:
    """Make the optimizer `zero` of a DeepSpeed engine leave weights alone that lie where they belong; others stay as they are."""
    if not isinstance(zero, DeepSpeedZeroOptimizer):
        return
    real = zero._update_model_bit16_weights

    def update(group: int) -> None:
        if not _in_place(zero, group):
            real(group)

    zero._update_model_bit16_weights = update


def _in_place(zero: Any, group: int) -> bool:
    """Say whether every weight of a group is the piece of the flat buffer that DeepSpeed would make it."""
    flat: Tensor = zero.bit16_groups_flat[group]
    ordered, offsets = zero.round_robin_bit16_groups[group], zero.round_robin_bit16_offsets[group]
    places = [flat.data_ptr() + offset * flat.element_size() for offset in offsets]
    if any(one.data_ptr() != place for one, place in zip(ordered, places, strict=True)):
        return False
    indices = zero.round_robin_bit16_indices[group]
    weights = enumerate(zero.bit16_groups[group])
    return all(weight.data_ptr() == places[indices[number]] for number, weight in weights)
