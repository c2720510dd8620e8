import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from m3p.checkpoints.fragment import MOMENTS
from m3p.optim.optimizer import OptimizerConfig, make_optimizer
from m3p.training.deepspeed.fragments import make_moments, set_updates, updates

CONFIG = OptimizerConfig(learning_rate=0.01)


class ApexAdam(torch.optim.Optimizer):
    """Counts as apex's FusedAdam does: in the group, with moments made at the first step if there are none."""

    def __init__(self, groups: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group["step"] + 1 if "step" in group else 1
            assert all(set(self.state[p]) >= set(MOMENTS) for p in group["params"])


def engine_of(optimizer: torch.optim.Optimizer) -> Any:
    return types.SimpleNamespace(basic_optimizer=optimizer, optimizer=optimizer)


def model() -> nn.Module:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    return network


@pytest.mark.parametrize("kernel", ["torch", "apex"])
def test_updates_are_counted_and_put_back_wherever_the_optimizer_counts(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = types.ModuleType("apex.optimizers")
    monkeypatch.setattr(fake, "FusedAdam", ApexAdam, raising=False)
    monkeypatch.setitem(sys.modules, "apex.optimizers", fake)
    optimizer = make_optimizer(model(), CONFIG, kernel)
    engine = engine_of(optimizer)
    make_moments(engine)
    assert updates(engine) == 0
    optimizer.step()
    assert updates(engine) == 1
    set_updates(engine, 7)
    optimizer.step()
    assert updates(engine) == 8
