"""Runs on hard negatives: equal losses for 1 and 3 ranks, and the same weights to the last bit after a stop."""

from pathlib import Path

import pytest
import torch

from m3p.checkpoints.read import read_weights
from tests.launch import ROOT, launch, metrics

ZERO = ROOT / "ds_configs" / "zero1.json"
SETTINGS = (
    "run.steps=6",
    "objectives.multilingual_text.weight=0",
    "objectives.image_caption.tasks={matching: 1, contrastive: 1}",
    "objectives.image_caption.matching={negatives: hard, negatives_per_pair: 2, loss: softmax}",
    "objectives.code_switched.tasks={matching: 1, contrastive: 1}",
    "objectives.code_switched.matching.negatives=hard",
)


@pytest.mark.launcher
def test_ranks_and_stops_change_nothing(tiny: Path, tmp_path: Path) -> None:
    for ranks in (1, 3):
        launch(tiny, ZERO, ranks, *SETTINGS, f"run.folder={tmp_path / str(ranks)}")
    wanted = metrics(tmp_path / "1")
    assert len(wanted) == 6
    for one, other in zip(metrics(tmp_path / "3"), wanted, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-4), one["step"]
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
    for stop in (3, 6):
        launch(tiny, ZERO, 1, *SETTINGS, f"run.folder={tmp_path / 'parted'}", f"run.stop_after={stop}")
    whole, parted = (read_weights(tmp_path / name / "checkpoints" / "step-00000006") for name in ("1", "parted"))
    assert whole.keys() == parted.keys()
    assert all(torch.equal(whole[name], parted[name]) for name in whole)
