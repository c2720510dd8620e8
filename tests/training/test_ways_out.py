"""Each way out that a message about starting and stopping a run names is gone: the message, what it says, the same call again."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from m3p import locks
from m3p.distributed import find
from m3p.errors import UserError
from m3p.recipe.load import parse_recipe
from m3p.shipped import find_ds_config
from m3p.training.deepspeed import config as deepspeed_config
from m3p.training.deepspeed.config import read_deepspeed_config, resolve
from m3p.training.stop import RunOwner
from tests.tiny import tiny_recipe


def refused(message: str) -> "pytest.RaisesExc[UserError]":
    return pytest.raises(UserError, match=message)


def test_moments_on_a_drive_go_to_the_processors_memory_or_weights_go_to_the_drive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = parse_recipe(tiny_recipe(tmp_path), "tiny").optimizer
    path, cpu = tmp_path / "ds.json", torch.device("cpu")
    settings = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}}
    path.write_text(json.dumps(settings))
    with refused(r"set it to cpu\. offload_param\.device = nvme is fine \(ds_configs/(.*)\)") as caught:
        resolve(read_deepspeed_config(path), optimizer, cpu)
    path.write_text(json.dumps(settings).replace('"device": "nvme"', '"device": "cpu"'))
    assert resolve(read_deepspeed_config(path), optimizer, cpu)
    named = re.search(r"ds_configs/(\w+)\.json", str(caught.value))
    assert named
    shipped = read_deepspeed_config(find_ds_config(named[1]))
    monkeypatch.setattr(deepspeed_config, "have_aio", lambda: False)
    with refused(r"install the headers of libaio \(libaio-dev\), or set the device to cpu"):
        resolve(shipped, optimizer, cpu)
    monkeypatch.setattr(deepspeed_config, "have_aio", lambda: True)
    offload = shipped["zero_optimization"]["offload_param"]
    for wrong in ("/nowhere/at/all", str(path), None):
        offload["nvme_path"] = wrong
        with refused(rf"nvme_path = {wrong}: no folder of this node .* name one .*, or set the device to cpu"):
            resolve(shipped, optimizer, cpu)
    offload["nvme_path"] = str(tmp_path)
    assert resolve(shipped, optimizer, cpu)
    shipped["zero_optimization"]["offload_param"] = {"device": "cpu"}
    assert resolve(shipped, optimizer, cpu)


def test_two_runs_of_a_node_do_not_share_the_weights_on_its_drive(tmp_path: Path) -> None:
    def place(run: str, **offload: str) -> str:
        settings: dict[str, dict[str, Any]] = {"zero_optimization": {"stage": 3, "offload_param": offload}}
        deepspeed_config.keep_apart(settings, tmp_path / run)
        return str(settings["zero_optimization"]["offload_param"].get("nvme_path"))

    drive = {"device": "nvme", "nvme_path": "/drive"}
    assert place("a", **drive).startswith("/drive/m3p-")
    assert place("a", **drive) == place("b/../a", **drive) != place("b", **drive)
    assert place("a", device="cpu") == "None"


def test_a_run_that_trains_elsewhere_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("M3P_INCARNATION", raising=False)
    here = locks.this_process()
    (tmp_path / "owner.json").write_text(here.model_copy(update={"pid": 1, "started": "0"}).model_dump_json())
    alive = [True]
    monkeypatch.setattr(locks, "runs_here", lambda holder: alive[0] and holder.pid == 1)
    with refused(r"Wait, stop it \(kill 1: it saves a checkpoint first\), or train into another run\.folder"):
        RunOwner(tmp_path)
    (tmp_path / "other").mkdir()
    RunOwner(tmp_path / "other").check()
    alive[0] = False  # waited for, or stopped
    first = RunOwner(tmp_path)
    (tmp_path / "incarnation").write_text("later\n")
    with refused(r"stops without saving; stop the other first, or train into another run\.folder"):
        first.check()
    RunOwner(tmp_path).check()


def test_tasks_that_train_apart_are_ranks_of_one_run_once_the_names_that_are_named_are_unset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M3P_INCARNATION", "17.0")
    (tmp_path / "incarnation").write_text("17.0\n")
    first = RunOwner(tmp_path)
    (tmp_path / "owner.json").write_text("another")
    with refused(r"unset (\w+), (\w+) and (\w+) in the shell that submits") as caught:
        first.check()
    names = re.findall(r"[A-Z]+_?[A-Z]+\b", str(caught.value).partition("unset ")[2])
    assert len(names) == 3
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "17"}
    more = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    left = {name: "1" if name == "WORLD_SIZE" else "0" for name in names}
    with refused("Unset RANK, LOCAL_RANK and WORLD_SIZE there, and submit again"):
        find(step | more | left)
    found = find(step | more)
    assert (found.launcher, found.rank, found.world_size) == ("srun", 1, 2)


@pytest.mark.long
def test_a_folder_of_another_recipe_is_left_or_moved_away(tiny: Path, tmp_path: Path) -> None:
    from m3p.ablation.ablate import ablate
    from tests.ablation.test_ablate import Trainer

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(tiny_recipe(tiny.parent)))

    def run(folder: Path, *overrides: str, vary: str = "model.dropout=0.5,0.0", evaluate: str = "true") -> None:
        ablate(recipe, [f"run.evaluate={evaluate}", *overrides], vary.split(), 1, folder, Trainer(recipe))

    with refused("model.dropout is given twice; name all its values in one"):
        run(tmp_path / "out", vary="model.dropout=0.5,0.0 model.dropout=0.4,0.1")
    with refused("the values are not YAML, divided by commas"):
        run(tmp_path / "out", vary="model.dropout=[0.5,0.0")
    with refused("say how many with --seeds"):
        run(tmp_path / "out", vary="run.seed=1,2")
    with refused("run.evaluate = false: no run would be scored, .*; set it to true"):
        run(tmp_path / "out", evaluate="false")
    run(tmp_path / "out", vary="model.dropout=0.5,0.0,0.4")
    missing = next((tmp_path / "out").glob("*/seed-0/evaluation/train.json"))
    stored = missing.rename(tmp_path / "elsewhere.json")
    with refused(f"{missing}: no such file; `m3p evaluate RUN` writes evaluations"):
        run(tmp_path / "out", vary="model.dropout=0.5,0.0,0.4")
    stored.rename(missing)  # as that command does
    run(tmp_path / "out", vary="model.dropout=0.5,0.0,0.4")
    with refused("name another --folder, or move this one away"):
        run(tmp_path / "out", "run.steps=19")
    run(tmp_path / "other", "run.steps=19")
    shutil.move(tmp_path / "out", tmp_path / "away")
    run(tmp_path / "out", "run.steps=19")
