"""Finds a rank's part of every parameter, master weight and moment inside DeepSpeed, under each ZeRO stage.

DeepSpeed calls such a part a tensor fragment. Together the ranks' fragments cover every parameter once, so each rank can write
what it holds without a word to the others, and any number of ranks of any stage can read it back. The moments exist from the
start (zeros), where torch would make them in the first step: the same numbers, and a place to put those of a checkpoint without
the warm-up step that `safe_set_full_optimizer_state` needs.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from m3p.checkpoints.fragment import MOMENTS, WEIGHT, Fragment


def make_moments(engine: Any) -> None:
    """Create the optimizer's moments, zero, with no update counted. Call once, after `deepspeed.initialize`.

    ZeRO 0 in half precision has taken a step by then, with gradients of zero; that one is forgotten too.
    """
    states = engine.basic_optimizer.state
    for owner in _owners(engine):
        states[owner] = {kind: torch.zeros_like(owner, memory_format=torch.preserve_format) for kind in MOMENTS}
    set_updates(engine, 0)
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:  # ZeRO 1 and 2 find a parameter's moments by views that are made here
        link()


def updates(engine: Any) -> int:
    """Return how many updates the optimizer has made; skipped steps do not count."""
    optimizer = engine.basic_optimizer
    counts = [optimizer.state[owner]["step"] for owner in _owners(engine)]
    # FusedAdam of DeepSpeed counts on in one parameter of a group alone, apex's in the group.
    return int(max(*counts, *(group.get("step", 0) for group in optimizer.param_groups)))


def set_updates(engine: Any, number: int) -> None:
    """Make `number` the optimizer's count of updates."""
    optimizer = engine.basic_optimizer
    torchs = isinstance(optimizer, torch.optim.AdamW)
    for owner in _owners(engine):
        # torch's fused AdamW keeps the count where the parameter is; the others want a plain number.
        state = optimizer.state[owner]
        if torchs and "step" in state:
            state["step"].fill_(number)
        else:
            state["step"] = torch.full((), float(number), device=owner.device) if torchs else number
    if not torchs:
        for group in optimizer.param_groups:
            group["step"] = number


def fragments(engine: Any) -> Iterator[Fragment]:
    """Yield this rank's fragments, in the order of `named_parameters`; a tied weight comes once."""
    masters = _masters(engine)
    states = engine.basic_optimizer.state
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for name, parameter in engine.module.named_parameters():
        if hasattr(parameter, "ds_id"):
            yield from _scattered(name, parameter, engine)
        elif hasattr(parameter, "_hp_mapping"):
            yield from _linked(name, parameter)
        else:
            master = masters.get(parameter, parameter)
            tensors = {WEIGHT: master.detach().view(-1)}
            if parameter.requires_grad:
                tensors |= {kind: states[master][kind].view(-1) for kind in MOMENTS}
            size = parameter.numel()
            share = range(size * rank // ranks, size * (rank + 1) // ranks)
            yield Fragment(name, tuple(parameter.shape), 0, size, share, tensors)


def _scattered(name: str, parameter: Any, engine: Any) -> Iterator[Fragment]:
    """ZeRO 3: rank r holds the r-th of equal parts; the last ones are padded."""
    piece = parameter.ds_tensor
    part = piece.ds_numel
    start = part * torch.distributed.get_rank()
    real = min(part, parameter.ds_numel - start)
    if real <= 0:
        return
    if parameter.requires_grad:
        zero = engine.optimizer
        group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
        owner = zero.fp32_partitioned_groups_flat[group]
        flat = {WEIGHT: owner.detach(), **{kind: engine.basic_optimizer.state[owner][kind] for kind in MOMENTS}}
        tensors = {kind: tensor.narrow(0, offset, real) for kind, tensor in flat.items()}
    else:
        tensors = {WEIGHT: piece.detach().narrow(0, 0, real)}
    yield Fragment(name, tuple(parameter.ds_shape), start, real, range(start, start + real), tensors)


def _linked(name: str, parameter: Any) -> Iterator[Fragment]:
    """ZeRO 1 and 2: a rank holds a stretch of all parameters laid end to end."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return
    address = mapping.lp_fragment_address
    tensors = {WEIGHT: mapping.get_hp_fragment().detach()}
    tensors |= {kind: mapping.get_hp_fragment(kind) for kind in MOMENTS}
    saved = range(address.start, address.start + address.numel)
    yield Fragment(name, tuple(parameter.shape), address.start, address.numel, saved, tensors)


def _owners(engine: Any) -> Iterator[Tensor]:
    """Yield the tensors that the torch optimizer keeps state for."""
    if hasattr(engine.optimizer, "fp32_partitioned_groups_flat"):  # ZeRO 3 hands them over one by one in its step
        yield from engine.optimizer.fp32_partitioned_groups_flat
    else:
        for group in engine.basic_optimizer.param_groups:
            yield from group["params"]


def _masters(engine: Any) -> dict[nn.Parameter, Tensor]:
    """ZeRO 0 in half precision: parameter -> its float32 master weight; empty in every other case."""
    zero = engine.optimizer
    if not hasattr(zero, "fp16_groups") or hasattr(zero, "fp32_partitioned_groups_flat"):
        return {}
    pairs = [
        pair
        for half, full in zip(zero.fp16_groups, zero.fp32_groups, strict=True)
        for pair in zip(half, full, strict=True)
    ]
    return dict(pairs)
