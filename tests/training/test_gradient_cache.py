from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from m3p.batch import Batch, Sequence
from m3p.distributed import Ranks
from m3p.model.m3p import M3P
from m3p.objectives.tasks import TASKS
from m3p.objectives.tasks.contrastive import ask_contrast
from m3p.objectives.tasks.task import Targets, TurnTask
from m3p.packing import Packer
from m3p.training.gradient_cache import GradientCache, drops
from m3p.training.losses import StepLosses
from tests.model.test_build import build as build_tiny
from tests.model.test_m3p import SOURCES, build, regions, words

PAIRS = 4
RANKS = Ranks(0, 0, 1, torch.device("cpu"), "python")


@pytest.mark.parametrize(
    ("settings", "dropped"), [({}, False), ({"dropout": 0.1}, True), ({"attention_dropout": 0.1}, True)]
)
def test_any_dropout_is_seen(settings: dict[str, Any], dropped: bool) -> None:
    fields: dict[str, Any] = {"dropout": 0.0, **settings}
    assert drops(build_tiny(**fields)) == dropped


def pairs(numbers: range) -> Batch:
    """Pack pairs of a turn, texts first; those at even places show one picture, which counts as identical."""
    packer = Packer(*SOURCES["regions"].features)
    texts = [packer.add(Sequence(words(number)))[0] for number in numbers]
    images = [packer.add(Sequence(np.array([0]), regions(number)))[0] for number in numbers]
    ask_contrast(
        packer,
        range(texts[0], texts[-1] + 1),
        range(images[0], images[-1] + 1),
        np.array(numbers),
        [f"caption {number}" for number in numbers],
        [f"picture {number % 2 and number}" for number in numbers],
    )
    return packer.finish(len(numbers))


def targets_of(batches: list[Batch]) -> dict[str, Targets]:
    """Return the targets of a whole turn."""
    task = TASKS["contrastive"]
    assert isinstance(task, TurnTask)
    return {task.name: task.turn_targets(PAIRS, [batch.targets[task.name] for batch in batches])}


def gradients(model: M3P, size: int) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients of a turn cut into micro-batches of `size` pairs."""
    model.zero_grad()
    torch.manual_seed(3)  # dropout
    batches = [pairs(range(first, first + size)) for first in range(0, PAIRS, size)]
    cache, counts = GradientCache(model, RANKS), {"contrastive": PAIRS}
    losses = StepLosses().begin("pairs", {"contrastive": 1.0}, counts, RANKS.device)
    kept = cache.first_pass(model, batches, targets_of(batches), losses)
    for number, batch in enumerate(batches):
        outputs = cache.second_pass(model, batch, number, kept)
        kept.part("contrastive", outputs.tasks["contrastive"], batch.targets["contrastive"]).backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return float(losses.sums["contrastive"]), found


def test_the_gradient_is_that_of_the_loss_over_the_whole_turn_however_it_is_cut() -> None:
    model, whole = build(SOURCES["regions"]), pairs(range(PAIRS))
    loss = TASKS["contrastive"].loss(model(whole).tasks["contrastive"], whole.targets["contrastive"])
    loss.backward()  # type: ignore[no-untyped-call]
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert wanted["heads.contrastive.text.weight"].abs().max() > 0
    for size in (1, 2, PAIRS):
        found, gradient = gradients(model, size)
        assert found == pytest.approx(float(loss), rel=1e-6)
        for name, tensor in wanted.items():
            assert torch.allclose(gradient[name], tensor, atol=1e-6), (size, name)


def test_both_passes_drop_the_same_units(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(SOURCES["regions"], dropout=0.5)
    model.train()
    torch.manual_seed(0)
    batches = [pairs(range(0, 2)), pairs(range(2, 4))]
    cache, counts = GradientCache(model, RANKS), {"contrastive": PAIRS}
    losses = StepLosses().begin("pairs", {"contrastive": 1.0}, counts, RANKS.device)
    seen: list[Tensor] = []

    def forward(batch: Batch) -> Any:
        outputs = model(batch)
        seen.append(outputs.tasks["contrastive"].detach())
        return outputs

    kept = cache.first_pass(forward, batches, targets_of(batches), losses)
    for number, batch in enumerate(batches):
        cache.second_pass(forward, batch, number, kept)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], forward(batches[0]).tasks["contrastive"].detach())
