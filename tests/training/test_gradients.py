"""The gradients of one step are the same however its batch is split, contrastive task included."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.launch import ROOT, launch
from tests.test_equality import zero

OBJECTIVES = ("multilingual_text", "image_caption", "code_switched")


def gradients(tiny: Path, folder: Path, name: str, ranks: int, micro_batch: int) -> dict[str, Tensor]:
    """Take one step; return its gradients by parameter."""
    settings = [f"objectives.{objective}.micro_batch={micro_batch}" for objective in OBJECTIVES]
    settings += ["run.steps=1", "schedule.warmup_steps=0", f"run.folder={folder / name}"]
    launch(tiny, zero(folder, 0), ranks, *settings, program=ROOT / "tests" / "training" / "gradients.py")
    return load_file(folder / f"{name}.gradients")


@pytest.mark.launcher
def test_gradients_do_not_depend_on_ranks_and_micro_batches(tiny: Path, tmp_path: Path) -> None:
    whole = gradients(tiny, tmp_path, "whole", 1, 100)
    assert all(gradient.abs().max() > 0 for name, gradient in whole.items() if name.startswith("heads."))
    for name, ranks, micro_batch in (("many", 1, 1), ("two ranks", 2, 100), ("two ranks, many", 2, 2)):
        split = gradients(tiny, tmp_path, name, ranks, micro_batch)
        assert split.keys() == whole.keys()
        for parameter, gradient in whole.items():
            scale = float(gradient.abs().max())
            assert float((split[parameter] - gradient).abs().max()) <= 1e-5 * max(scale, 1e-3), (name, parameter)
