"""One GPU trains as one CPU does, in every ZeRO stage and precision: the same runs on both, with the real launcher."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from m3p.kernels.obstacles import Situation, fa4, quack_feed_forward
from m3p.retrieval.evaluate import evaluate_run
from tests.launch import ROOT, launch, metrics
from tests.test_equality import zero
from tests.tiny import make_tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
VISUALS = ("regions", "patches")
NO_PACKAGES = fa4(Situation("cuda", torch.bfloat16)) or quack_feed_forward(Situation("cuda", torch.bfloat16))
"""Why flash-attn-4 or quack-kernels cannot be used here."""
Metrics = list[dict[str, Any]]


class Case(NamedTuple):
    """A run of a tiny recipe."""

    visual: str
    stage: int
    bf16: bool = False
    offload: bool = False
    kernels: str = "auto"
    """Of norms and GELU."""
    device: str = "cuda"


REFERENCES = {visual: Case(visual, 0, device="cpu") for visual in VISUALS}
FLOAT32 = [
    Case("regions", 0),
    Case("patches", 1),
    Case("regions", 2, offload=True),
    Case("regions", 3),
]
BF16 = [
    Case("regions", 1, bf16=True, kernels="triton"),
    Case("patches", 2, bf16=True, kernels="triton"),
    Case("patches", 2, bf16=True, kernels="torch"),
    Case("patches", 3, bf16=True),  # where Triton's norms and GELU are refused
    Case("regions", 3, bf16=True, offload=True, kernels="torch"),
]


def settings(folder: Path, stage: int, bf16: bool, offload: bool = False) -> Path:
    """Write a DeepSpeed file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = zero(folder, stage, offload)
    content = json.loads(path.read_text())
    content["bf16"]["enabled"] = bf16
    path.write_text(json.dumps(content))
    return path


def train(recipe: Path, ds_config: Path, folder: Path, *overrides: str, device: str = "cuda") -> Metrics:
    """Train into `folder` on one rank; return its metrics."""
    launch(recipe, ds_config, 1, f"run.folder={folder}", *overrides, accelerator=device)
    return metrics(folder)


class Runs:
    """All runs, several at a time: a tiny one spends most of its time on getting started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(max(1, min(12, len(os.sched_getaffinity(0)) - 4)))
        self.recipes = {visual: make_tiny(folder / visual, visual) for visual in VISUALS}
        self.stopped = self._pool.submit(self._stop_and_go_on)  # two, one after the other: the longest
        cases = [*REFERENCES.values(), *BF16, *FLOAT32]
        self._started: dict[Case, Future[Metrics]] = {case: self._pool.submit(self._train, case) for case in cases}
        self.fp16 = self._pool.submit(self._fp16)
        self.optional = None if NO_PACKAGES else self._pool.submit(self._optional)
        """Of optional packages, in bf16; None where they cannot be used."""

    def of(self, case: Case) -> Metrics:
        """Wait for the metrics of a run."""
        return self._started[case].result()

    def folder(self, case: Case) -> Path:
        """Return the folder of a run."""
        return self._folder / "-".join(map(str, case))

    def close(self) -> None:
        """Start nothing more, and wait for what runs."""
        self._pool.shutdown(cancel_futures=True)

    def _train(self, case: Case) -> Metrics:
        folder = self.folder(case)
        ds_config = settings(self._folder / f"{folder.name}-settings", case.stage, case.bf16, case.offload)
        kernels = [f"kernels.{field}={case.kernels}" for field in ("layer_norm", "gelu")]
        return train(self.recipes[case.visual], ds_config, folder, *kernels, device=case.device)

    def _stop_and_go_on(self) -> Metrics:
        """Stop on a GPU, and go on on a CPU in another stage."""
        recipe, parts = self.recipes["regions"], self._folder / "stopped-settings"
        stopped = self._folder / "stopped"
        train(recipe, settings(parts / "first", 2, True), stopped, "run.stop_after=10")
        return train(recipe, settings(parts / "second", 0, False), stopped, device="cpu")

    def _optional(self) -> Metrics:
        ds_config = settings(self._folder / "optional-settings", 2, True)
        kernels = ["kernels.attention=fa4", "kernels.gelu=quack"]
        return train(self.recipes["patches"], ds_config, self._folder / "optional", *kernels)

    def _fp16(self) -> Metrics:
        ds_config = ROOT / "ds_configs" / "zero2_fp16.json"
        return train(self.recipes["regions"], ds_config, self._folder / "fp16", "run.steps=60")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The runs, started."""
    started = Runs(tmp_path_factory.mktemp("runs"))
    yield started
    started.close()


def assert_close(found: Metrics, wanted: Metrics, tolerance: float) -> None:
    """Compare losses and gradient norms, step by step."""
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for one, other in zip(found, wanted, strict=True):
        for name in ("loss", "gradient_norm"):
            assert one[name] == pytest.approx(other[name], rel=tolerance), (one["step"], name)


@pytest.mark.parametrize("case", BF16)
def test_bf16_is_float32_within_its_rounding(runs: Runs, case: Case) -> None:
    assert_close(runs.of(case), runs.of(REFERENCES[case.visual]), 2e-2)
    parts = (runs.folder(case) / "environment.json").read_text()
    assert "varlen" in parts
    assert "bfloat16" in parts


@pytest.mark.parametrize("case", FLOAT32)
def test_float32_is_that_of_a_cpu(runs: Runs, case: Case) -> None:
    assert_close(runs.of(case), runs.of(REFERENCES[case.visual]), 1e-3)


def test_a_run_stopped_on_a_gpu_goes_on_on_a_cpu(runs: Runs) -> None:
    assert_close(runs.stopped.result(), runs.of(REFERENCES["regions"]), 2e-2)


@pytest.mark.skipif(NO_PACKAGES is not None, reason=str(NO_PACKAGES))
def test_a_run_by_optional_packages_is_float32_within_its_rounding(runs: Runs) -> None:
    assert runs.optional is not None
    assert_close(runs.optional.result(), runs.of(REFERENCES["patches"]), 2e-2)


def test_fp16_finds_its_loss_scale_and_learns(runs: Runs) -> None:
    found = runs.fp16.result()
    assert found[-1]["loss"] < 0.9 * found[0]["loss"]


def test_an_evaluation_on_a_gpu_is_that_of_a_cpu(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("patches", 1)
    runs.of(case)
    (on_gpu,) = evaluate_run(runs.folder(case))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (there,) = evaluate_run(runs.folder(case))
    assert on_gpu.mean.mean_recall == pytest.approx(there.mean.mean_recall, abs=1.0)
