"""Losses and gradient norms do not depend on ZeRO stage, ranks, micro-batches, or on stopping."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launch import ROOT, launch, metrics

STEPS = "run.steps=20"


def zero(folder: Path, stage: int, offload: bool = False) -> Path:
    """Write a DeepSpeed file; stage 3 with thresholds at 0, so that parameters are really scattered."""
    settings: dict[str, Any] = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
    if stage == 3:
        for name in ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance"):
            settings["zero_optimization"][f"stage3_{name}"] = 0
        settings["zero_optimization"]["stage3_prefetch_bucket_size"] = 0
    if offload:
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    path = folder / f"zero{stage}{'_offload' if offload else ''}.json"
    path.write_text(json.dumps(settings))
    return path


def run(
    tiny: Path,
    folder: Path,
    name: str,
    stage: int,
    ranks: int,
    *overrides: str,
    offload: bool = False,
    launcher: bool = False,
) -> list[Any]:
    """Train under `folder`/`name`; return its metrics."""
    target = folder / name
    launch(tiny, zero(folder, stage, offload), ranks, STEPS, f"run.folder={target}", *overrides, launcher=launcher)
    return metrics(target)


def assert_same(found: list[Any], wanted: list[Any], tolerance: float) -> None:
    """Compare losses (each objective's each task) and gradient norms, step by step."""
    assert len(found) == len(wanted) == 20
    assert len({name for one in found for name in one["losses"]}) == 9  # a step without a masked word lacks that task
    for one, other in zip(found, wanted, strict=True):
        assert one["step"] == other["step"]
        assert one["losses"].keys() == other["losses"].keys()
        for name, loss in other["losses"].items():
            assert one["losses"][name] == pytest.approx(loss, rel=tolerance), (one["step"], name)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=tolerance), one["step"]


@pytest.fixture(scope="module")
def reference(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """ZeRO 0 on one rank."""
    return run(tiny, tmp_path_factory.mktemp("reference"), "zero0", 0, 1)


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("stage", "ranks", "offload"),
    [
        (0, 2, False),
        (1, 2, False),
        (2, 2, False),
        (3, 2, False),
        (1, 3, False),
        (3, 3, False),
        (3, 2, True),
        (2, 2, True),
    ],
)
def test_stage_and_ranks_change_nothing(
    tiny: Path, tmp_path: Path, reference: list[Any], stage: int, ranks: int, offload: bool
) -> None:
    by_deepspeed = (stage, ranks) == (1, 2)  # one of them as a user starts it
    assert_same(run(tiny, tmp_path, "run", stage, ranks, offload=offload, launcher=by_deepspeed), reference, 1e-4)


@pytest.mark.launcher
def test_micro_batches_change_nothing(tiny: Path, tmp_path: Path, reference: list[Any]) -> None:
    whole = [f"objectives.{name}.micro_batch=100" for name in ("multilingual_text", "image_caption", "code_switched")]
    assert_same(run(tiny, tmp_path, "whole", 1, 1, *whole), reference, 1e-4)


@pytest.mark.launcher
def test_turns_in_one_pass_change_nothing(tiny: Path, tmp_path: Path, reference: list[Any]) -> None:
    whole = [f"objectives.{name}.micro_batch=100" for name in ("multilingual_text", "image_caption", "code_switched")]
    assert_same(run(tiny, tmp_path, "joined", 3, 2, "run.join_turns=true", *whole), reference, 1e-5)


@pytest.mark.launcher
def test_recomputing_layers_changes_nothing(tiny: Path, tmp_path: Path, reference: list[Any]) -> None:
    assert_same(run(tiny, tmp_path, "recompute", 3, 2, "model.recompute=true"), reference, 1e-4)


@pytest.mark.launcher
def test_stopping_and_going_on_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    dropout = "model.dropout=0.1"
    whole = run(tiny, tmp_path, "whole", 2, 2, dropout)
    run(tiny, tmp_path, "stopped", 2, 2, dropout, "run.stop_after=7")
    assert (tmp_path / "stopped" / "status").read_text() == "stopped planned 7\n"
    again = run(tiny, tmp_path, "stopped", 2, 2, dropout)
    assert_same(again, whole, 0.0)
    assert (tmp_path / "stopped" / "status").read_text() == "done\n"
