"""Gradients are summed in float32, however a batch is cut into micro-batches and over ranks, in every ZeRO stage."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.chaos.harness import read_shares
from tests.forked import numbered, run_forks
from tests.launch import environment, free_port

PROGRAM = Path(__file__).parent / "sums.py"
SAMPLES = list(range(64))
SAME = [0] * 96
"""One sample so often that its part is below the last of bf16's 8 bits of the sum, and is rounded the same way each time."""
CUTS = {"1x64": (SAMPLES, 64), "16x4": (SAMPLES, 4), "once": ([0, 0], 1), "96x1": (SAME, 1)}


def settings(stage: int, bf16: bool, offload: bool) -> dict[str, Any]:
    """Return a file of DeepSpeed's settings; stage 3 with thresholds at 0, so that parameters are really scattered."""
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        names = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")
        zero |= {f"stage3_{name}": 0 for name in names}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {"bf16": {"enabled": bf16}, "zero_optimization": zero}


CASES = [(0, False), (1, False), (2, False), (3, False), (1, True), (2, True), (3, True)]


def take(folder: Path, ranks: int) -> None:
    """Take the gradients of all cases with so many ranks, each cut in every way, and of float32 in one piece."""
    cases = {
        f"{stage}-{offload}-{cut}": {
            "settings": settings(stage, True, offload),
            "samples": samples,
            "micro_batch": size,
        }
        for stage, offload in CASES
        for cut, (samples, size) in CUTS.items()
    }
    for cut in ("1x64", "once"):
        samples, size = CUTS[cut]
        cases[f"float32-{cut}"] = {"settings": settings(0, False, False), "samples": samples, "micro_batch": size}
    for stage, offload in CASES:
        case = cases[f"{stage}-{offload}-once"]
        cases[f"{stage}-{offload}-refused"] = {**case, "refused": True}
    run_cases(folder, ranks, cases)


def run_cases(folder: Path, ranks: int, cases: dict[str, Any]) -> None:
    """Take the gradients of cases of sums.py with so many ranks."""
    output = folder / "output"
    arguments = [str(folder), json.dumps(cases)]
    variables = {**environment("cpu"), "MASTER_PORT": str(free_port())}
    codes = run_forks(PROGRAM, [arguments] * ranks, numbered(variables, ranks), [(output, output)] * ranks, 400)
    assert not any(codes), output.read_text()[-5000:]


def read(folder: Path) -> Tensor:
    """Return the whole gradient of a case, end to end."""
    with read_shares(folder) as reader:
        return torch.cat([reader.whole("gradient", name).flatten() for name in sorted(reader.shapes)])


def error(found: Tensor, wanted: Tensor) -> float:
    """Return the size of the difference as a share of the gradient."""
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.launcher
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_bf16_step_in_many_parts_gives_the_gradient_of_one_pass(tmp_path: Path, ranks: int) -> None:
    """Nothing is left in it of a refused step before."""
    take(tmp_path, ranks)
    exact = {cut: read(tmp_path / f"float32-{cut}") for cut in ("1x64", "once")}
    for stage, offload in CASES:
        found = {cut: read(tmp_path / f"{stage}-{offload}-{cut}") for cut in CUTS}
        one_pass = error(found["1x64"], exact["1x64"])
        assert 0 < one_pass < 0.02, (stage, offload)  # bf16's own
        assert error(found["16x4"], exact["1x64"]) < 1.1 * one_pass, (stage, offload)
        assert error(found["96x1"], exact["once"]) < 1.1 * error(found["once"], exact["once"]), (stage, offload)
        assert torch.equal(read(tmp_path / f"{stage}-{offload}-refused"), found["once"]), (stage, offload)
