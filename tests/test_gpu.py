"""One GPU trains as one CPU does, in every ZeRO stage and precision: the same runs on both, with the real launcher."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.launch import ROOT, launch, metrics
from tests.test_equality import zero
from tests.tiny import make_tiny
from trainer.retrieval.evaluate import evaluate_run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
VISUALS = ("regions", "patches")


def run(recipe: Path, settings: Path, folder: Path, *overrides: str, device: str = "cuda") -> list[dict[str, Any]]:
    """Train into `folder` on one rank; return its metrics."""
    launch(recipe, settings, 1, f"run.folder={folder}", *overrides, accelerator=device)
    return metrics(folder)


def with_precision(path: Path, bf16: bool) -> Path:
    """Set bf16 of a DeepSpeed file, in place."""
    settings = json.loads(path.read_text())
    settings["bf16"]["enabled"] = bf16
    path.write_text(json.dumps(settings))
    return path


def assert_close(found: list[dict[str, Any]], wanted: list[dict[str, Any]], tolerance: float) -> None:
    """Compare losses and gradient norms, step by step."""
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for one, other in zip(found, wanted, strict=True):
        for name in ("loss", "gradient_norm"):
            assert one[name] == pytest.approx(other[name], rel=tolerance), (one["step"], name)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny recipe of each visual source."""
    return {visual: make_tiny(tmp_path_factory.mktemp(visual), visual) for visual in VISUALS}


@pytest.fixture(scope="module")
def on_cpu(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What they give on a CPU."""
    folder = tmp_path_factory.mktemp("cpu")
    return {name: run(recipe, zero(folder, 0), folder / name, device="cpu") for name, recipe in recipes.items()}


@pytest.mark.parametrize("visual", VISUALS)
@pytest.mark.parametrize(("stage", "offload"), [(0, False), (1, False), (2, True), (3, False), (3, True)])
def test_float32_is_that_of_a_cpu(
    recipes: dict[str, Path], on_cpu: dict[str, Any], tmp_path: Path, visual: str, stage: int, offload: bool
) -> None:
    settings = with_precision(zero(tmp_path, stage, offload), False)
    assert_close(run(recipes[visual], settings, tmp_path / "run"), on_cpu[visual], 1e-3)


@pytest.mark.parametrize("visual", VISUALS)
@pytest.mark.parametrize(
    ("stage", "offload", "norm"), [(1, False, "triton"), (2, False, "torch"), (3, False, "triton"), (3, True, "torch")]
)
def test_bf16_is_float32_within_its_rounding(
    recipes: dict[str, Path], on_cpu: dict[str, Any], tmp_path: Path, visual: str, stage: int, offload: bool, norm: str
) -> None:
    found = run(recipes[visual], zero(tmp_path, stage, offload), tmp_path / "run", f"kernels.layer_norm={norm}")
    assert_close(found, on_cpu[visual], 2e-2)
    environment = (tmp_path / "run" / "environment.json").read_text()
    assert "varlen" in environment
    assert "bfloat16" in environment


def test_fp16_finds_its_loss_scale_and_learns(recipes: dict[str, Path], tmp_path: Path) -> None:
    found = run(recipes["regions"], ROOT / "ds_configs" / "zero2_fp16.json", tmp_path / "run", "run.steps=60")
    assert found[-1]["loss"] < 0.9 * found[0]["loss"]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_stopped_on_a_gpu_goes_on_there_and_on_a_cpu(
    recipes: dict[str, Path], tmp_path: Path, bf16: bool
) -> None:
    recipe, tolerance = recipes["regions"], 2e-2 if bf16 else 1e-3
    whole = run(recipe, with_precision(zero(tmp_path, 1), bf16), tmp_path / "whole")
    run(recipe, with_precision(zero(tmp_path, 2), bf16), tmp_path / "stopped", "run.stop_after=7")
    run(recipe, with_precision(zero(tmp_path, 3), bf16), tmp_path / "stopped", "run.stop_after=14")
    assert_close(run(recipe, zero(tmp_path, 0), tmp_path / "stopped", device="cpu"), whole, tolerance)


def test_an_evaluation_on_a_gpu_is_that_of_a_cpu(
    recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipes["patches"], zero(tmp_path, 1), tmp_path / "run")
    (on_gpu,) = evaluate_run(tmp_path / "run")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (there,) = evaluate_run(tmp_path / "run")
    assert on_gpu.mean.mean_recall == pytest.approx(there.mean.mean_recall, abs=1.0)
