import math
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from m3p.training.deepspeed.norms import INVALID, gradient_norm, group_norms, take_norms_at_once

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_norm_is_that_of_all_gradients_end_to_end(kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator).to(kind) for shape in ((3, 4), (700,), (1,))]
    wanted = torch.cat([gradient.double().flatten() for gradient in gradients]).norm()
    found = gradient_norm(CPU, gradients)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_of_no_gradient_it_is_nothing_and_squares_that_overflow_are_no_matter() -> None:
    assert gradient_norm(CPU, []).item() == 0
    assert gradient_norm(CPU, [torch.full((4,), 1e18)] * 9).item() == pytest.approx(6e18)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_makes_it_invalid(bad: float) -> None:
    assert gradient_norm(CPU, [torch.ones(3), torch.tensor([1.0, bad])]).item() == INVALID


@pytest.mark.parametrize("offloaded", [False, True])
def test_stage_3_uses_it_but_where_gradients_are_offloaded(offloaded: bool) -> None:
    zero: Any = DeepSpeedZeroOptimizer_Stage3.__new__(DeepSpeedZeroOptimizer_Stage3)  # its constructor needs a network
    vars(zero).update({"offload_optimizer": offloaded, "device": CPU, "compute_grad_norm": True})
    take_norms_at_once(zero)
    assert ("get_grad_norm_direct" in vars(zero)) is not offloaded
    if not offloaded:
        assert zero.get_grad_norm_direct([torch.tensor([3.0, 4.0])], []).item() == 5


@pytest.mark.parametrize("offloaded", [False, True])
def test_stages_1_and_2_take_the_norms_of_all_groups_at_once(offloaded: bool) -> None:
    zero: Any = DeepSpeedZeroOptimizer.__new__(DeepSpeedZeroOptimizer)
    vars(zero).update({"cpu_offload": offloaded, "device": CPU, "compute_grad_norm": True})
    groups = {0: [torch.tensor([3.0]), torch.tensor([4.0])], 1: [], 2: [torch.full((1, 4), 6.0)]}
    vars(zero).update({"bit16_groups": [[], [], []], "averaged_gradients": groups})
    take_norms_at_once(zero)
    assert ("scaled_global_norm" in vars(zero)) is not offloaded
    if not offloaded:
        assert zero.scaled_global_norm().item() == 13
        groups[1] = [torch.tensor([math.nan])]
        assert zero.scaled_global_norm().item() == math.inf


def test_norms_of_groups_are_those_of_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = [[torch.randn(size, generator=generator) for size in sizes] for sizes in ((5, 700), (33,), (1, 2, 3))]
    found = group_norms(CPU, groups)
    assert torch.equal(found, torch.stack([gradient_norm(CPU, group) for group in groups]))


def test_where_no_norm_is_taken_deepspeed_looks_itself() -> None:
    zero: Any = DeepSpeedZeroOptimizer.__new__(DeepSpeedZeroOptimizer)
    vars(zero).update({"cpu_offload": False, "device": CPU, "compute_grad_norm": False})
    take_norms_at_once(zero)
    assert "check_overflow" not in vars(zero)
