"""Runs that see by a tower, with the real launcher: ZeRO stages, ranks, resuming, export and back."""

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
from tests.visual.tower.towers import NAMES

Towers = Callable[[str], Path]
pytestmark = pytest.mark.launcher
STEPS = ("run.steps=4", "schedule.warmup_steps=1", "run.checkpoint_every=4")
"""A short run."""


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


def train(recipe: Path, folder: Path, name: str, stage: int, ranks: int, *overrides: str) -> list[Any]:
    """Train under `folder`/`name`; return its metrics."""
    launch(recipe, zero(folder, stage), ranks, *STEPS, f"run.folder={folder / name}", *overrides)
    return metrics(folder / name)


def test_every_stage_trains_alike_resumes_and_comes_back_from_an_export(
    tiny: Path, tmp_path: Path, towers: Towers
) -> None:
    """Frozen. In the last stage the run is stopped in the middle, and goes on bit for bit."""
    recipe = write_recipe(tiny, tmp_path, towers("vit"))
    stages_alike(recipe, tmp_path, 2)
    goes_on(recipe, tmp_path)
    comes_back(tmp_path / "stopped", tmp_path / "exported", towers("vit"))


def stages_alike(recipe: Path, folder: Path, ranks: int) -> list[Any]:
    """Train in ZeRO 0 on `ranks` and in the other stages on two; compare, and return the metrics of the first."""
    wanted = train(recipe, folder, "zero0", 0, ranks)
    for stage in (1, 2, 3):
        same_losses(train(recipe, folder, f"zero{stage}", stage, 2), wanted)
    return wanted


def goes_on(recipe: Path, folder: Path) -> None:
    """Stop a run of ZeRO 3 in the middle and go on; compare with the run `zero3` bit for bit."""
    train(recipe, folder, "stopped", 3, 2, "run.stop_after=2")
    again = train(recipe, folder, "stopped", 3, 2)
    whole = metrics(folder / "zero3")
    for one, other in zip(again, whole, strict=True):
        assert (one["losses"], one["gradient_norm"]) == (other["losses"], other["gradient_norm"])


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
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trained", ["none", "all", 1])
def test_every_architecture_trains_alike_in_every_stage(
    tiny: Path, tmp_path: Path, towers: Towers, name: str, trained: Any
) -> None:
    """Frozen, trained, and trained from a layer on. Frozen also resumed; trained also recomputed."""
    recipe = write_recipe(tiny, tmp_path, towers(name), trained=trained)
    wanted = stages_alike(recipe, tmp_path, 1)
    if trained == "none":
        goes_on(recipe, tmp_path)
    else:
        same_losses(train(recipe, tmp_path, "recompute", 3, 2, "model.recompute=true"), wanted)
    comes_back(tmp_path / "zero3", tmp_path / "exported", towers(name))
