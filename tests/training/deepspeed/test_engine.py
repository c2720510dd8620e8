"""DeepSpeed stays in its room: a second engine needs no change outside it."""

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m3p.distributed import Ranks
from m3p.errors import UserError
from m3p.kernels.choice import KernelsConfig, choose
from m3p.kernels.obstacles import Situation
from m3p.model.build import build_model
from m3p.recipe.load import load_recipe
from m3p.shipped import find_ds_config
from m3p.training.deepspeed import engine
from m3p.training.deepspeed.engine import DeepSpeedEngine
from tests.launch import ROOT

ROOM = ROOT / "trainer" / "m3p" / "training" / "deepspeed"
OUTSIDE = sorted(path for path in (ROOT / "trainer").rglob("*.py") if ROOM not in path.parents)


def reaches(source: str) -> Iterator[str]:
    """Yield what a source takes of the library DeepSpeed: imports, also by name at run time, and an engine's insides."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "deepspeed")
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "deepspeed":
            yield f"from {node.module}"
        elif isinstance(node, ast.Attribute) and node.attr == "deepspeed":
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (ast.unparse(node) for argument in node.args if "deepspeed" in ast.unparse(argument))


@pytest.mark.parametrize(
    "source",
    [
        "import deepspeed",
        "def f():\n    import deepspeed.comm as d",
        "from deepspeed.runtime import engine",
        "self._engine.deepspeed.train()",
        "importlib.import_module('deepspeed.ops.adam')",
    ],
)
def test_a_reach_is_seen(source: str) -> None:
    assert list(reaches(source))


def test_our_own_modules_of_that_name_are_no_reach() -> None:
    assert not list(reaches("from m3p.training.deepspeed.config import resolve\nimport m3p.training.engine"))


@pytest.mark.long
def test_nothing_outside_its_room_reaches_for_deepspeed() -> None:
    found = {str(path.relative_to(ROOT)): list(reaches(path.read_text())) for path in OUTSIDE}
    assert len(found) > 90
    assert {path: names for path, names in found.items() if names} == {}


def test_texts_are_not_remembered_in_zero_3(tiny: Path) -> None:
    recipe = load_recipe(
        tiny,
        [
            *("model.encode_pictures=false", "model.pooling=mean", "model.freeze=[text]", "model.remember_texts=true"),
            *("objectives.multilingual_text.weight=0", "objectives.code_switched.weight=0"),
            "objectives.image_caption.tasks={masked_words: 0, masked_regions: 0, matching: 0, contrastive: 1}",
        ],
    )
    model = build_model(recipe.model, 64, recipe.visual, recipe.tasks, seed=0)
    config, alone = find_ds_config("zero3"), Ranks(0, 0, 1, torch.device("cpu"), "python")
    with pytest.raises(UserError, match=r"model.remember_texts: with ZeRO 3 .* use ZeRO 0 to 2"):
        DeepSpeedEngine(model, recipe.optimizer, recipe.kernels, config, alone, 1, 60)


def test_kernels_are_chosen_for_the_encoder_that_is_trained(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_gpu(kernels: KernelsConfig, situation: Situation) -> object:
        return choose(kernels, replace(situation, device="cuda", precision=torch.bfloat16))

    monkeypatch.setattr(engine, "choose", on_a_gpu)
    monkeypatch.setattr("m3p.kernels.obstacles.installed", lambda module: True)
    config, alone = find_ds_config("zero1"), Ranks(0, 0, 1, torch.device("cpu"), "python")
    refused = {
        ("model.attention_dropout=0.1", "kernels.attention=triton"): r"model\.attention_dropout = 0\.1",
        ("model.shape.heads=2", "kernels.attention=triton"): "this encoder's have 16",
        ("model.shape.feed_forward=20", "kernels.gelu=quack"): "has width = 32, feed_forward = 20",
    }
    for overrides, reason in refused.items():
        recipe = load_recipe(tiny, ["model.shape.width=32", "model.shape.heads=1", *overrides])
        model = build_model(recipe.model, 64, recipe.visual, recipe.tasks, seed=0)
        with pytest.raises(UserError, match=rf"kernels\.\w+ = \w+: .*{reason}"):
            DeepSpeedEngine(model, recipe.optimizer, recipe.kernels, config, alone, 1, 60)
