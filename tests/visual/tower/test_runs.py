"""Runs that see by a tower, with the real launcher: ZeRO stages, ranks, resuming, export and back."""

import json
import shutil
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
