"""Gradients are summed over ranks where they are needed: each part of a bucket on the rank that owns it.

In ZeRO stages 1 and 2 a rank updates its share of the weights, and needs the sum of its share of the gradients alone. DeepSpeed
0.19 sums whole buckets on every rank all the same, which sends twice the bytes. It has a setting for the other way
(`use_multi_rank_bucket_allreduce: false`), with which the program waits for the device before each sum.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed import comm
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from m3p.training.deepspeed.config import MIN_PART


@dataclass
class Part:
    """What one rank owns of a bucket."""

    owner: int
    slices: list[tuple[int, int]]
    """Start and length of each piece, in numbers, in the order of the bucket."""


def sum_on_owners(zero: Any) -> None:
    """Make the optimizer `zero` of a DeepSpeed engine sum gradients on their owners; every rank calls this.

    For settings of which `config.sums_on_owners` says so: stage 1 or 2, gradients divided before they are summed.
    """
    assert isinstance(zero, DeepSpeedZeroOptimizer), type(zero)
    assert (zero.reduce_scatter, zero.postscale_gradients, zero.contiguous_gradients) == (False, False, True)
    group = zero.dp_process_group
    ranks, own = comm.get_world_size(group=group), comm.get_rank(group=group)
    whole, known = zero.gradient_reduction_w_predivide, dict[Hashable, list[Part]]()

    def reduce(bucket: Tensor, sent_as: torch.dtype) -> Tensor:
        parameters = zero.ipg_buckets[sent_as].params
        key = tuple(parameters)  # buckets are the same ones in every step
        if key not in known:
            known[key] = parts_of(zero, parameters)
        parts = known[key]
        if ranks == 1 or bucket.numel() < MIN_PART * len(parts):
            return whole(bucket, sent_as)
        sent = bucket.to(sent_as).div_(ranks)  # the bucket itself where it is of that format
        for part in parts:
            pieces = [sent.narrow(0, *one) for one in part.slices]
            joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            comm.reduce(joined, comm.get_global_rank(group, part.owner), group=group)
            if part.owner == own and len(pieces) > 1:
                torch._foreach_copy_(pieces, torch.split(joined, [length for _, length in part.slices]))
        if sent is not bucket:
            bucket.copy_(sent)
        return sent

    zero.gradient_reduction_w_predivide = reduce


def parts_of(zero: Any, parameters: Sequence[tuple[int, int, int]]) -> list[Part]:
    """Return the parts of a bucket by owner.

    `parameters` are group, place in the group and number of each parameter, in the order in which they lie in the bucket.
    """
    parts: dict[int, Part] = {}
    start = 0
    for group, place, number in parameters:
        offsets = zero.grad_start_offset[group]
        owners = sorted(zero.param_to_partition_ids[group][number], key=lambda owner: offsets[owner][number])
        begins = [offsets[owner][number] for owner in owners]
        size = zero.bit16_groups[group][place].numel()
        for owner, begin, end in zip(owners, begins, [*begins[1:], size], strict=True):
            _add(parts.setdefault(owner, Part(owner, [])).slices, start + begin, end - begin)
        start += size
    return [parts[owner] for owner in sorted(parts)]


def _add(slices: list[tuple[int, int]], start: int, length: int) -> None:
    """Add a piece; one that begins where the last one ends makes that longer."""
    if slices and sum(slices[-1]) == start:
        first, before = slices.pop()
        start, length = first, before + length
    slices.append((start, length))
