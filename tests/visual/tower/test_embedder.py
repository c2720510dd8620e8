from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m3p.batch import Batch, Sequence
from m3p.model.build import build_model
from m3p.model.config import ModelConfig
from m3p.model.m3p import M3P
from m3p.objectives.tasks import TASKS
from m3p.objectives.tasks.masked_regions import ask_regions
from m3p.optim.optimizer import OptimizerConfig, parameter_groups
from m3p.packing import Packer
from m3p.visual.pretrained import Frozen
from m3p.visual.tower.embedder import GridPooling, QueryPooling, TowerEmbedder, TrainedTower
from m3p.visual.tower.folder import tower_layers
from m3p.visual.tower.source import Tower, TowerTokens
from tests.visual.tower.towers import NAMES, SIZE

Towers = Callable[[str], Path]
WIDTH = 8
CONFIG = {
    "shape": {"layers": 2, "width": WIDTH, "heads": 2, "feed_forward": 12, "positions": 20},
    "tokenizer": "t",
    "dropout": 0.0,
}
REGIONS = TASKS["masked_regions"]


def network(visual: Tower, **config: Any) -> M3P:
    """Build a network that sees by a tower."""
    tasks = [task for task in TASKS.values() if visual.has_targets or not task.masks_regions]
    return build_model(ModelConfig.model_validate({**CONFIG, **config}), 30, visual, tasks, seed=0)


def embedder_of(model: M3P) -> TowerEmbedder:
    """Return the part of a network that sees."""
    assert isinstance(model.visual, TowerEmbedder)
    return model.visual


def pixels(seed: int) -> NDArray[np.uint8]:
    """Draw a picture as the loader gives it."""
    return np.random.default_rng(seed).integers(0, 256, (1, SIZE, SIZE, 3)).astype(np.uint8)


def pack(features: NDArray[Any], hidden: list[int], tokens: int = 4, others: int = 0) -> Batch:
    """Pack a caption with a picture, some tokens of which are hidden and asked for, and other captions with the same picture."""
    packer, picture = Packer(*features.shape[1:]), TowerTokens(features, tokens)
    for _ in range(others):
        packer.add(Sequence(np.array([0, 7, 2]), picture))
    number, first = packer.add(Sequence(np.array([0, 5, 2]), picture))
    places = np.array(hidden, np.int64)
    packer.hide(number, places, picture)
    if hidden:
        ask_regions(packer, first + 3 + places, [(picture, places)])
    return packer.finish(1)


def test_nothing_depends_on_the_features_that_are_hidden(towers: Towers) -> None:
    """Behind the tower: each hidden token shows a learned vector, whatever the tower says at its place."""
    model = network(Tower(kind="tower", folder=towers("vit"), tokens=4)).eval()
    seen = np.random.default_rng(0).normal(size=(1, 4, 16)).astype(np.float32)
    changed = seen.copy()
    changed[0, [1, 3]] += 5
    with torch.inference_mode():
        here, there = model.encode(pack(seen, [1, 3]))[0], model.encode(pack(changed, [1, 3]))[0]
        assert torch.equal(here, there)
        assert not torch.equal(here, model.encode(pack(changed, [3]))[0]), "what is not hidden is seen"
    batch = pack(seen, [1, 3])
    batch.visual_features.requires_grad_()
    torch.autograd.backward(model.encode(batch)[0].square().sum())
    gradient = batch.visual_features.grad
    assert gradient is not None
    assert gradient[0, [1, 3]].abs().sum() == 0
    assert gradient[0, [0, 2]].abs().sum() > 0


@pytest.mark.long
def test_a_hidden_token_is_its_place_and_a_vector_that_is_learnt(towers: Towers) -> None:
    model = network(Tower(kind="tower", folder=towers("siglip"), tokens=4))
    vectors, seen = embedder_of(model)(torch.from_numpy(pixels(0)), torch.zeros(0, 4))
    assert vectors.shape == (4 + 4, WIDTH)
    assert seen.shape == (4, 16)
    embedder = embedder_of(model)
    torch.testing.assert_close(vectors[4:], embedder.norm(embedder.hidden + embedder.places.weight))
    outputs = model.train()(pack(pixels(0), [2]))
    loss = REGIONS.loss(outputs.tasks[REGIONS.name], outputs.targets[REGIONS.name])
    torch.autograd.backward(loss + outputs.touch)
    assert embedder.hidden.grad is not None
    assert embedder.hidden.grad.abs().sum() > 0


@pytest.mark.long
def test_the_target_is_what_the_tower_says_of_the_token_of_unit_length(towers: Towers) -> None:
    model = network(Tower(kind="tower", folder=towers("dinov2"), tokens=4)).train()
    tower = embedder_of(model).tower
    assert isinstance(tower, Frozen)
    outputs = model(pack(pixels(3), [0, 2]))
    grid = tower(torch.from_numpy(pixels(3))).view(1, 4, 4, 16).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)[0, [0, 2]]
    wanted = outputs.targets[REGIONS.name]["features"]
    torch.testing.assert_close(wanted, F.normalize(pooled, dim=-1))
    assert not wanted.requires_grad


@pytest.mark.long
def test_a_frozen_tower_runs_once_for_all_sequences_and_passes_and_without_a_gradient(towers: Towers) -> None:
    model = network(Tower(kind="tower", folder=towers("convnext"), tokens=4)).train()
    tower = embedder_of(model).tower
    assert isinstance(tower, Frozen)
    looked: list[int] = []
    tower.module.register_forward_hook(lambda module, inputs, output: looked.append(len(inputs[0])))
    batch = pack(pixels(0), [1], others=3)
    plain = model(batch)
    assert looked == [1], "one picture, for four sequences"
    seen = model.look(batch)
    again = [model(seen), model(seen)]
    assert looked == [1, 1]
    for outputs in again:
        assert torch.equal(outputs.tasks[REGIONS.name], plain.tasks[REGIONS.name])
    torch.autograd.backward(plain.touch + plain.tasks[REGIONS.name].sum())
    assert all(parameter.grad is None for parameter in tower.module.parameters())
    assert not any("tower" in name for name in model.state_dict()), "it is in no checkpoint and no optimizer"
    empty = Packer(1).finish(0)
    assert model(model.look(empty)).tasks == {}
    assert looked == [1, 1], "a micro-batch without pictures costs nothing"


@pytest.mark.long
@pytest.mark.parametrize("pool", ["average", "queries"])
@pytest.mark.parametrize("trained", ["none", "all"])
def test_every_trained_parameter_gets_a_gradient_with_pictures_and_without(
    towers: Towers, pool: Any, trained: Any
) -> None:
    model = network(Tower(kind="tower", folder=towers("swin"), tokens=4, pool=pool, trained=trained)).train()
    for batch in (pack(pixels(0), []), Packer(1).finish(0)):
        model.zero_grad()
        outputs = model(batch)
        torch.autograd.backward(outputs.touch + sum(task.float().sum() for task in outputs.tasks.values()))
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trained", ["all", 1])
def test_a_tower_is_trained_from_the_layer_that_is_named(towers: Towers, name: str, trained: Any) -> None:
    visual = Tower(kind="tower", folder=towers(name), tokens=4, trained=trained, rate=0.1)
    model = network(visual)
    tower = embedder_of(model).tower
    assert isinstance(tower, TrainedTower)
    model.train()
    assert not any(module.training for module in tower.modules()), "it drops nothing, and keeps its statistics"
    buffers = {key: buffer.clone() for key, buffer in tower.named_buffers()}
    torch.autograd.backward(model.encode(pack(pixels(0), []))[0].square().sum())
    frozen = [key for key, p in tower.model.named_parameters() if not p.requires_grad]
    for key, parameter in tower.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in tower.named_buffers())
    if trained == "all":
        assert set(frozen) == visual.facts.unused
    else:
        assert any(key.startswith("embeddings") for key in frozen)
        assert not any(".2." in key for key in frozen if "encoder" in key and key.split(".")[2] == "2")
    config = OptimizerConfig(learning_rate=1e-3, new_learning_rate=1e-2)
    groups = parameter_groups(model, config)
    mine = {id(p) for group in groups if group["peak"] == pytest.approx(1e-4) for p in group["params"]}
    assert mine == {id(p) for p in tower.parameters() if p.requires_grad}
    assert sorted({round(group["peak"], 6) for group in groups}) == [1e-4, 1e-3, 1e-2]


@pytest.mark.long
@pytest.mark.parametrize("name", ["clip", "convnext", "efficientnet"])
def test_recomputing_the_layers_of_a_trained_tower_changes_no_gradient(towers: Towers, name: str) -> None:
    found = []
    for recompute in (False, True):
        visual = Tower(kind="tower", folder=towers(name), tokens=4, trained="all")
        model = network(visual, recompute=recompute).train()
        tower, calls = embedder_of(model).tower, list[int]()
        assert isinstance(tower, TrainedTower)
        inner = next(module for module in tower_layers(tower.model)[1].modules() if not list(module.children()))
        inner.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.autograd.backward(model.encode(pack(pixels(0), []))[0].square().sum())
        assert len(calls) == 1 + recompute
        found.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient)


@pytest.mark.long
@pytest.mark.parametrize("trained", ["none", "all"])
def test_batch_norms_keep_their_statistics_in_float32_where_weights_have_16_bits(towers: Towers, trained: Any) -> None:
    """As DeepSpeed casts a network: its parameters alone."""
    found = []
    for precision in (torch.float32, torch.bfloat16):
        tower = embedder_of(
            network(Tower(kind="tower", folder=towers("efficientnet"), tokens=1, trained=trained))
        ).tower
        plain = tower.module if isinstance(tower, Frozen) else tower
        for parameter in plain.parameters():
            parameter.data = parameter.data.to(precision)
        assert any(buffer.dtype == torch.float32 for buffer in plain.buffers())
        found.append(plain(torch.from_numpy(pixels(0))).float())
    scale = float(found[0].abs().max())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.05 * scale)
    assert not torch.equal(*found)


@pytest.mark.parametrize(("side", "tokens"), [(4, 4), (7, 9), (7, 49), (5, 1)])
def test_pooling_is_torchs_adaptive_average(side: int, tokens: int) -> None:
    grid = torch.from_numpy(np.random.default_rng(0).normal(size=(2, side * side, 3)).astype(np.float32))
    square = grid.view(2, side, side, 3).permute(0, 3, 1, 2)
    wanted = F.adaptive_avg_pool2d(square, round(tokens**0.5)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(GridPooling(side, tokens)(grid), wanted)


def test_queries_weigh_the_whole_grid_each_in_its_own_way() -> None:
    torch.manual_seed(0)
    pooling = QueryPooling(3, 16, 1e-5)
    grid: Tensor = torch.randn(2, 9, 16)
    found = pooling(grid)
    assert found.shape == (2, 3, 16)
    torch.testing.assert_close(pooling(grid[:, torch.randperm(9)]), found)
    assert not torch.allclose(found[:, 0], found[:, 1])
