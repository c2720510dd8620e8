"""DeepSpeed's FusedAdam instead of torch's AdamW, over a stop: the same training."""

from pathlib import Path

import pytest

from tests.launch import ROOT, launch, metrics


@pytest.mark.slow  # DeepSpeed compiles it, which takes a minute
@pytest.mark.launcher
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_deepspeeds_fused_adam_trains_the_same(tiny: Path, tmp_path: Path, stage: int) -> None:
    ds_config = ROOT / "ds_configs" / f"zero{stage}.json"
    losses = []
    for kernel, stops in (("torch", [8]), ("deepspeed", [5, 8])):
        folder = tmp_path / kernel
        for stop in stops:
            options = [f"run.folder={folder}", f"run.stop_after={stop}", f"kernels.optimizer={kernel}"]
            launch(tiny, ds_config, 2, *options)
        losses.append([line["loss"] for line in metrics(folder)])
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
