import types
from typing import Any

import pytest
import torch
from torch import nn

from m3p.kernels.obstacles import NO_APEX
from m3p.optim.optimizer import OptimizerConfig, make_optimizer
from m3p.training.deepspeed.fragments import make_moments, set_updates, updates

CONFIG = OptimizerConfig(learning_rate=0.01)


def engine_of(optimizer: torch.optim.Optimizer) -> Any:
    return types.SimpleNamespace(basic_optimizer=optimizer, optimizer=optimizer)


def model() -> nn.Module:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    return network


def count_on(optimizer: torch.optim.Optimizer) -> None:
    """Make updates, put another count back, and go on from it."""
    engine = engine_of(optimizer)
    make_moments(engine)
    assert updates(engine) == 0
    optimizer.step()
    assert updates(engine) == 1
    set_updates(engine, 7)
    optimizer.step()
    assert updates(engine) == 8


def test_updates_are_counted_and_put_back() -> None:
    count_on(make_optimizer(model(), CONFIG, "torch"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_updates_are_counted_where_apex_counts_them() -> None:
    pytest.importorskip("amp_C", reason=NO_APEX)
    network = model().cuda()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    count_on(make_optimizer(network, CONFIG, "apex"))
