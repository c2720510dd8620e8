import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from m3p.checkpoints.files import FORMAT_VERSION, State
from m3p.checkpoints.resumable import check_resumable, check_visual, fingerprints
from m3p.data.order.shuffle import ORDER_VERSION
from m3p.errors import BadSample, UserError
from m3p.forecast.forecast import Planner
from m3p.forecast.memory import activation_memory
from m3p.inspect.peek import peek
from m3p.model.build import build_model, network_sizes
from m3p.model.flops import Work
from m3p.objectives.tasks import TASKS
from m3p.optim.optimizer import OptimizerConfig, make_optimizer
from m3p.recipe.load import load_recipe, parse_recipe
from m3p.recipe.recipe import Recipe
from m3p.training.build_objectives import build_objectives
from m3p.visual.tower.embedder import GridTower
from m3p.visual.tower.folder import make_tower
from m3p.visual.tower.source import GREY, Tower
from tests.launch import ROOT
from tests.visual.tower.test_pixels import scene
from tests.visual.tower.towers import NAMES, REAL, SIZE, grid_by_transformers, pixels_by_transformers

Towers = Callable[[str], Path]


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a picture as a PNG."""
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "PNG")
    return stored.getvalue()


def recipe_with(tiny: Path, folder: Path, tower: Path, *overrides: str, **fields: Any) -> Recipe:
    """Return the tiny recipe with a tower of four tokens for its pictures."""
    raw = yaml.safe_load(tiny.read_text())
    raw["visual"] = {"kind": "tower", "folder": str(tower), "tokens": 4, **fields}
    raw["run"]["folder"] = str(folder / "run")
    return parse_recipe(raw, "tiny", overrides)


@pytest.mark.long
@pytest.mark.parametrize("name", [*NAMES, pytest.param(REAL, marks=pytest.mark.slow)])
def test_features_of_a_stored_picture_are_those_of_transformers(towers: Towers, name: str) -> None:
    """From the bytes of a picture on: prepared by the folder's own image processor, seen by its own model, in float32."""
    folder = towers(name)
    visual = Tower(kind="tower", folder=folder, tokens=1)
    stored = png(scene(70, 51))
    seen = visual.load({"png": stored}, None).features
    with torch.inference_mode():
        found = GridTower(make_tower(folder, weights=True), visual.facts)(torch.from_numpy(seen))
    pixels = pixels_by_transformers(folder, Image.open(io.BytesIO(stored)))
    wanted = grid_by_transformers(folder, pixels, visual.facts.tokens)
    assert found.shape == wanted.shape
    assert float(wanted.std()) > 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_training_crop_is_the_samples_own_and_a_picture_fills_its_memory(towers: Towers) -> None:
    visual = Tower(kind="tower", folder=towers("dinov2"), tokens=4, crop=0.5, flip=True)
    members = {"png": png(np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8))}
    assert visual.augments
    memory = np.zeros(visual.memory_shape, np.uint8)
    plain = visual.load(members, None, memory)
    assert plain.features is memory
    assert plain.features.shape == (1, SIZE, SIZE, 3)
    draws: list[Iterator[float]] = [iter([0.3, 0.2, 0.7, part, 0.5]) for part in (0.9, 0.9, 0.1)]
    one, same, mirrored = (visual.load(members, draw).features for draw in draws)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, plain.features)
    assert not np.array_equal(one, mirrored)


def test_a_picture_costs_no_look_at_the_towers_folder(towers: Towers, tmp_path: Path) -> None:
    shutil.copytree(towers("vit"), tmp_path / "tower")
    visual = Tower(kind="tower", folder=tmp_path / "tower", tokens=4)
    first = {"png": png(np.zeros((40, 40, 3), np.uint8))}
    wanted = visual.load(first, None).features
    shutil.rmtree(tmp_path / "tower")
    np.testing.assert_array_equal(visual.load(first, None).features, wanted)


def test_what_is_known_of_a_tower_does_not_follow_it_to_another_folder(towers: Towers, tmp_path: Path) -> None:
    visual = Tower(kind="tower", folder=towers("swin"), tokens=4)
    shutil.copytree(towers("vit"), tmp_path / "vision_tower")
    moved = visual.exported_to(tmp_path) if visual.facts.width else visual
    assert moved.facts == Tower(kind="tower", folder=towers("vit"), tokens=4).facts
    assert moved.facts != visual.facts


def test_what_is_no_picture_is_a_bad_sample(towers: Towers) -> None:
    visual = Tower(kind="tower", folder=towers("vit"), tokens=4, max_pixels=100)
    for members, message in (
        ({}, "no picture"),
        ({"jpg": b"x"}, "unreadable picture"),
        ({"png": png(np.zeros((11, 10, 3), np.uint8))}, "more than visual.max_pixels = 100"),
    ):
        with pytest.raises(BadSample, match=message):
            visual.load(members, None)


def test_wrong_fields_are_refused_with_the_way_out(tiny: Path, tmp_path: Path, towers: Towers) -> None:
    folder = towers("vit")
    for fields, message in (
        ({"tokens": 5}, r"tokens = 5 is no square"),
        ({"trained": -1}, r"trained = -1: layers count from 0"),
        ({"trained": "all"}, r"objectives.image_caption.tasks.masked_regions: .*set it to 0"),
        ({"pool": "queries"}, r"objectives.code_switched.tasks.masked_regions: .*set it to 0"),
    ):
        with pytest.raises(UserError, match=message):
            recipe_with(tiny, tmp_path, folder, **fields)
    none = [f"objectives.{name}.tasks.masked_regions=0" for name in ("image_caption", "code_switched")]
    for overrides, fields, message in (
        ([], {"tokens": 25}, rf"visual.tokens = 25: the grid of {folder} has 16; lower it"),
        (none, {"trained": 3}, rf"visual.trained = 3: {folder} has 3 layers, 0 the first; lower it"),
    ):
        recipe = recipe_with(tiny, tmp_path, folder, *overrides, **fields)
        with pytest.raises(UserError, match=message):
            build_objectives(recipe)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_by_every_architecture_lower_the_loss(
    tiny: Path, tmp_path: Path, towers: Towers, name: str
) -> None:
    recipe = recipe_with(tiny, tmp_path, towers(name))
    objective = build_objectives(recipe)["image_caption"]
    model = build_model(recipe.model, objective.context.tokenizer.size, recipe.visual, recipe.tasks, seed=0).train()
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=3e-3))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    batch, found = model.look(objective.batch(range(24), range(24))), list[float]()
    for _ in range(8):
        outputs = model(batch)
        alone = [task for task in outputs.tasks if not TASKS[task].over_turn]
        assert {"matching", "masked_regions"} <= set(alone)
        losses = [TASKS[task].loss(outputs.tasks[task], outputs.targets[task]) for task in alone]
        loss = torch.stack(losses).sum() + outputs.touch
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        found.append(float(loss))
    assert found[-1] < 0.9 * found[0]


def test_peek_shows_what_the_network_sees_with_hidden_cells_grey(towers: Towers) -> None:
    visual = Tower(kind="tower", folder=towers("vit"), tokens=4)
    features = torch.full((2, SIZE, SIZE, 3), 7, dtype=torch.uint8)
    features[1] = 9
    half = SIZE // 2
    shown = np.asarray(visual.show(features, np.array([4, 8 + 1, 6, 7])))
    assert (shown[:half, half:] == GREY).all(), "the token at place 1 is hidden"
    assert (shown[half:] == 9).all()
    assert (shown[:half, :half] == 9).all()


def test_peek_tells_a_step_by_a_tower(tiny: Path, tmp_path: Path, towers: Towers) -> None:
    recipe = recipe_with(tiny, tmp_path, towers("siglip"))
    turns = peek(recipe, build_objectives(recipe), 1, 3)
    lines = [line for turn in turns for sample in turn.samples for line in sample.lines if line.regions]
    assert {line.regions for line in lines} == {4}
    assert all(line.picture.startswith("data:image/jpeg") for line in lines)


def test_work_counts_the_tower_once_a_picture_and_not_for_stored_features(towers: Towers) -> None:
    config = load_recipe(ROOT / "trainer/m3p/recipes/demo.yaml").model
    frozen = Tower(kind="tower", folder=towers("vit"), tokens=4)
    sizes = network_sizes(config.model_copy(update={"layers": None}), 400, frozen, TASKS.values())
    seen, stored = Work(visual_rows=8, pixel_rows=8), Work(visual_rows=8)
    tower = 2 * frozen.facts.flops
    assert sizes.training_flops(seen) - sizes.training_flops(stored) == pytest.approx(tower)
    trained = frozen.model_copy(update={"trained": "all"})
    assert trained.pixel_flops() == pytest.approx(3 * frozen.pixel_flops())
    later = frozen.model_copy(update={"trained": 2})
    assert later.pixel_flops() == pytest.approx((1 + 2 / 3) * frozen.pixel_flops())


def test_a_forecast_counts_frozen_weights_once_and_trained_ones_with_all_they_need(
    tiny: Path, tmp_path: Path, towers: Towers
) -> None:
    ds_config = ROOT / "ds_configs" / "zero1.json"
    none = [f"objectives.{name}.tasks.masked_regions=0" for name in ("image_caption", "code_switched")]
    frozen = Planner(recipe_with(tiny, tmp_path, towers("swin")), ds_config)
    trained = Planner(recipe_with(tiny, tmp_path, towers("swin"), *none, trained="all"), ds_config)
    weights = recipe_with(tiny, tmp_path, towers("swin")).visual
    assert isinstance(weights, Tower)
    assert frozen.frozen_parameters == weights.frozen_parameters == 8693
    assert trained.frozen_parameters == 0
    assert trained.parameters["visual"] - frozen.parameters["visual"] == 8693
    setting = frozen.setting(4, None)
    assert frozen.forecast(setting, None).memory["frozen weights"] == 4 * 8693
    assert frozen.forecast(replace(setting, element=2), None).memory["frozen weights"] == 4 * 8693, (
        "float32 in bf16 too"
    )
    assert "frozen weights" not in trained.forecast(setting, None).memory
    assert trained.forecast(setting, None).memory["activations"] > frozen.forecast(setting, None).memory["activations"]
    assert frozen.sizes.pixel_working_memory * 4 == weights.facts.working
    assert trained.sizes.pixel_working_memory == 0
    # A tower that is large beside the rest sets the most that is in use.
    sizes = replace(frozen.sizes, pixel_working_memory=1e6)
    assert activation_memory(sizes, Work(slots=8, words=4, pixel_rows=4), setting)["activations"] == 4 * 4e6


@pytest.mark.long
def test_a_forecast_without_the_folder_says_what_it_assumes(tiny: Path, tmp_path: Path) -> None:
    planner = Planner(recipe_with(tiny, tmp_path, tmp_path / "elsewhere"), ROOT / "ds_configs" / "zero1.json")
    assert any("visual.folder = " in line and "SigLIP base" in line for line in planner.assumptions)
    assert planner.frozen_parameters == pytest.approx(93e6, rel=0.01)


def state(recipe: Recipe) -> State:
    """Return the state of a run at its start."""
    data = fingerprints(recipe, build_objectives(recipe))
    return State(
        format_version=FORMAT_VERSION, step=0, ranks=1, order_version=ORDER_VERSION, data=data,
        recipe=recipe.model_dump(mode="json", exclude_none=True),
    )  # fmt: skip


def test_a_run_does_not_go_on_with_another_tower(tiny: Path, tmp_path: Path, towers: Towers) -> None:
    moved = Path(shutil.copytree(towers("vit"), tmp_path / "moved"))
    mine, same, other = (
        state(recipe_with(tiny, tmp_path, folder)) for folder in (towers("vit"), moved, towers("dinov2"))
    )
    assert check_resumable(tmp_path, mine, same, accept=False) == []
    with pytest.raises(UserError, match=r"content of visual.folder: \w+ then, \w+ now"):
        check_resumable(tmp_path, mine, other, accept=False)
    check_visual(tmp_path, mine, recipe_with(tiny, tmp_path, moved).visual)
    with pytest.raises(UserError, match=r"was trained with another visual.folder \(hash \w+\)"):
        check_visual(tmp_path, mine, recipe_with(tiny, tmp_path, towers("dinov2")).visual)
