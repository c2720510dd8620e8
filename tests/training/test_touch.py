"""ZeRO-3 reuses the old gradient of a parameter that a micro-batch did not touch; our network touches them all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import ROOT, metrics
from tests.test_equality import zero

# One turn a step: in steps of text alone, every head on pictures is unused, and so are the words' in none.
ONE_TURN = ("run.turns_per_step=1", "run.steps=6", "schedule.warmup_steps=1")


def norms(program: Path, recipe: Path, ds_config: Path, run: Path) -> list[float]:
    """Train on one rank; return the gradient norm of each step."""
    command = [sys.executable, str(program), "--recipe", str(recipe), "--deepspeed_config", str(ds_config), *ONE_TURN]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, f"run.folder={run}"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [line["gradient_norm"] for line in metrics(run)]


@pytest.mark.launcher
def test_without_the_touch_zero3_goes_wrong_and_with_it_does_not(tiny: Path, tmp_path: Path) -> None:
    program = ROOT / "trainer" / "run.py"
    wanted = norms(program, tiny, zero(tmp_path, 0), tmp_path / "zero0")
    cured = norms(program, tiny, zero(tmp_path, 3), tmp_path / "zero3")
    stale = norms(ROOT / "tests" / "training" / "untouched.py", tiny, zero(tmp_path, 3), tmp_path / "untouched")
    assert cured == pytest.approx(wanted, rel=1e-4)
    assert stale != pytest.approx(wanted, rel=1e-2)
