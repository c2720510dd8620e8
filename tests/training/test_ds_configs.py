"""Every file of ds_configs/ trains, or says clearly why not on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from m3p.checkpoints.read import newest_whole
from m3p.errors import UserError
from m3p.optim.optimizer import OptimizerConfig
from m3p.training.deepspeed import config as deepspeed_config
from m3p.training.deepspeed.config import read_deepspeed_config, resolve
from tests.chaos.harness import assert_equal, run, tensors
from tests.launch import ROOT, metrics

FILES = sorted((ROOT / "ds_configs").glob("*.json"))
REFUSED = {"zero2_fp16": "fp16.enabled: DeepSpeed has no fp16 on a CPU", "zero3_nvme": "DeepSpeed's aio"}
OPTIMIZER = OptimizerConfig(learning_rate=0.001)


def written(folder: Path, **settings: Any) -> dict[str, Any]:
    """Write a file of settings and read it as the trainer does."""
    path = folder / "ds.json"
    path.write_text(json.dumps(settings))
    return read_deepspeed_config(path)


@pytest.mark.launcher
@pytest.mark.parametrize(
    "files",
    [
        pytest.param(["zero0", "zero1", "zero3"], id="few"),  # three kinds of DeepSpeed's optimizers
        pytest.param([path.stem for path in FILES if path.stem not in REFUSED], id="every", marks=pytest.mark.slow),
    ],
)
def test_each_goes_on_from_the_one_before_in_bf16_with_its_exact_state(
    tiny: Path, tmp_path: Path, files: list[str]
) -> None:
    """Other tests run them in float32; bf16, which they have on a GPU, keeps its weights in other places."""
    folder = tmp_path / "run"
    for number, path in enumerate(ROOT / "ds_configs" / f"{name}.json" for name in files):
        before, _ = newest_whole(folder)
        settings = json.loads(path.read_text())
        settings["bf16"] = {"enabled": True}
        bf16 = tmp_path / path.name
        bf16.write_text(json.dumps(settings))
        seen = tmp_path / f"seen-{path.stem}"
        fault = [{"point": "record", "folder": str(seen)}]
        overrides = (
            "run.steps=24",
            "run.keep_checkpoints=9",
            f"run.stop_after={4 * (number + 1)}",
            f"run.folder={folder}",
        )
        run(tiny, bf16, 2, fault, *overrides, name=path.stem, folder=tmp_path)
        if before is not None:
            assert_equal(tensors(seen), tensors(before))
    losses = [line["loss"] for line in metrics(folder)]
    assert len(losses) == 4 * len(files)
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_read_and_refused_where_it_cannot_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_config, "have_aio", lambda: False)
    config = read_deepspeed_config(path)
    if path.stem in REFUSED:
        with pytest.raises(UserError, match=REFUSED[path.stem]):
            resolve(config, OPTIMIZER, torch.device("cpu"))
    else:
        resolve(config, OPTIMIZER, torch.device("cpu"))


def test_fp16_is_taken_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    resolved = resolve(read_deepspeed_config(ROOT / "ds_configs" / "zero2_fp16.json"), OPTIMIZER, torch.device("cuda"))
    assert deepspeed_config.precision(resolved) == torch.float16


def test_moments_on_nvme_are_refused_because_no_checkpoint_could_hold_them(tmp_path: Path) -> None:
    config = written(
        tmp_path, zero_optimization={"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}
    )
    with pytest.raises(UserError, match=r"offload_optimizer\.device = nvme"):
        resolve(config, OPTIMIZER, torch.device("cpu"))
