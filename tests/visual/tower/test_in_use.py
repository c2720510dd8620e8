from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from m3p.visual.tower.folder import make_tower, tower_facts
from m3p.visual.tower.in_use import most_in_use
from tests.visual.tower.towers import SIZE

PICTURES = 16


def most_by_the_allocator(model: nn.Module, pixels: torch.Tensor) -> int:
    """Return the most bytes that torch's allocator has given to a forward at once."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(pixel_values=pixels)
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda one: one.start_ns())]).max())


@pytest.mark.long
@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "efficientnet"])
def test_the_memory_of_a_frozen_tower_is_about_what_the_allocator_gives(
    towers: Callable[[str], Path], name: str
) -> None:
    facts, model = tower_facts(towers(name)), make_tower(towers(name), weights=True)
    found = most_by_the_allocator(model, torch.zeros(PICTURES, 3, SIZE, SIZE))
    # A device's kernels differ from the meta device's: attention keeps less, convolutions lay pictures out anew.
    assert 0.7 < 4 * facts.working * PICTURES / found < 1.5


def test_a_chain_has_two_results_in_use_and_a_skip_three() -> None:
    class Skip(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = x * 2
            return (first * 3) * 4 + first

    with torch.device("meta"):
        x = torch.zeros(100)
        assert most_in_use(nn.Sequential(*[nn.Softplus() for _ in range(5)]), input=x) == 2 * 400
        assert most_in_use(Skip(), x=x) == 3 * 400
