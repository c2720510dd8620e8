"""Runs that see by a tower, with the real launcher: ZeRO stages, ranks, resuming, export and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from m3p.api import load
from m3p.errors import UserError
from m3p.export import export_run
from tests.launch import launch, metrics
from tests.test_equality import zero
from tests.visual.tower.test_source import png
from tests.visual.tower.towers import NAMES, REAL

Towers = Callable[[str], Path]
pytestmark = pytest.mark.launcher
STEPS = ("run.steps=4", "schedule.warmup_steps=1", "run.checkpoint_every=4")
"""A short run."""
PROGRAM = Path(__file__).with_name("many_runs.py")
SLOW = 3000.0
"""Seconds for the runs of a real tower, one after another on two cores."""


def write_recipe(tiny: Path, folder: Path, tower: Path, **fields: Any) -> Path:
    """Write the tiny recipe with a tower of four tokens for its pictures; a trained one predicts no regions."""
    raw = yaml.safe_load(tiny.read_text())
    raw["visual"] = {"kind": "tower", "folder": str(tower), "tokens": 4, **fields}
    if fields.get("trained", "none") != "none":
        for name in ("image_caption", "code_switched"):
            raw["objectives"][name]["tasks"] = {**raw["objectives"][name]["tasks"], "masked_regions": 0}
    path = folder / "tower.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def same_losses(found: list[Any], wanted: list[Any]) -> None:
    """Compare every task's loss and the gradient's norm, step by step."""
    assert len(found) == len(wanted) == 4
    for one, other in zip(found, wanted, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-4)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)


def train_every_stage(recipe: Path, *more: str) -> None:
    """Train in ZeRO 0 to 3 on two ranks, and in stage 3 stop in the middle and go on; compare, the last bit for bit.

    `more` are overrides of further runs in stage 3 that must train alike.
    """
    for stage in range(4):
        zero(recipe.parent, stage)
    steps = ",".join(STEPS)
    runs = [f"zero{stage}:{stage}:{steps}" for stage in range(4)]
    runs += [f"stopped:3:{steps},run.stop_after=2", f"stopped:3:{steps}"]
    runs += [f"{override}:3:{steps},{override}" for override in more]
    launch(recipe, recipe.parent, 2, *runs, program=PROGRAM, seconds=SLOW if more else 300)
    found = {
        name: metrics(recipe.parent / name) for name in (*(f"zero{stage}" for stage in range(4)), "stopped", *more)
    }
    for name in ("zero1", "zero2", "zero3", *more):
        same_losses(found[name], found["zero0"])
    for one, other in zip(found["stopped"], found["zero3"], strict=True):
        assert (one["losses"], one["gradient_norm"]) == (other["losses"], other["gradient_norm"])


def test_every_stage_trains_alike_resumes_and_comes_back_from_an_export(
    tiny: Path, tmp_path: Path, towers: Towers
) -> None:
    """Frozen."""
    train_every_stage(write_recipe(tiny, tmp_path, towers("vit")))
    comes_back(tmp_path / "stopped", tmp_path / "exported", towers("vit"))


def comes_back(run: Path, export: Path, tower: Path) -> None:
    """Export a run, and compare what it sees with what the run sees, where the tower's own folder is gone."""
    export_run(run, export)
    picture = png(np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8))
    mine = load(run).embed_pictures([picture])
    moved = tower.rename(tower.with_name("gone"))
    try:
        with pytest.raises(UserError, match=r"want a local `transformers` folder"):
            load(run)
        np.testing.assert_array_equal(load(export).embed_pictures([picture]), mine)
    finally:
        moved.rename(tower)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, REAL])
@pytest.mark.parametrize("trained", ["none", "all", 1])
def test_every_architecture_trains_alike_in_every_stage(
    tiny: Path, tmp_path: Path, towers: Towers, name: str, trained: Any
) -> None:
    """Frozen, trained, and trained from a layer on; trained also recomputed."""
    recipe = write_recipe(tiny, tmp_path, towers(name), trained=trained)
    train_every_stage(recipe, *(() if trained == "none" else ("model.recompute=true",)))
    comes_back(tmp_path / "stopped", tmp_path / "exported", towers(name))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trained"), [("vit", "none"), ("swin", "all"), ("efficientnet", 1), (REAL, "all")])
def test_in_bf16_every_stage_trains_within_its_rounding_and_resumes(
    tiny: Path, tmp_path: Path, towers: Towers, name: str, trained: Any
) -> None:
    """Beside the same run in float32; stopped and gone on with it is the same to the last bit."""
    recipe, steps = write_recipe(tiny, tmp_path, towers(name), trained=trained), ",".join(STEPS)
    (zero(tmp_path, 0)).rename(tmp_path / "zerofloat.json")
    for stage in range(4):
        path = zero(tmp_path, stage)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"bf16": {"enabled": True}}))
    runs = [f"float:float:{steps}", *(f"bf16-{stage}:{stage}:{steps}" for stage in range(4))]
    runs += [f"stopped:3:{steps},run.stop_after=2", f"stopped:3:{steps}"]
    launch(recipe, tmp_path, 2, *runs, program=PROGRAM, seconds=SLOW)
    wanted = metrics(tmp_path / "float")
    for stage in range(4):
        for one, other in zip(metrics(tmp_path / f"bf16-{stage}"), wanted, strict=True):
            assert one["losses"] == pytest.approx(other["losses"], rel=0.02)
            assert one["losses"] != other["losses"]
    for one, other in zip(metrics(tmp_path / "stopped"), metrics(tmp_path / "bf16-3"), strict=True):
        assert (one["losses"], one["gradient_norm"]) == (other["losses"], other["gradient_norm"])
    comes_back(tmp_path / "stopped", tmp_path / "exported", towers(name))
