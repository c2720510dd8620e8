import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p import distributed
from m3p.distributed import LAUNCHER_VARIABLES, LauncherInfo, find
from m3p.errors import UserError

LAUNCHED = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
MEET = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
BATCH_SHELL = {"SLURM_STEP_ID": str(0xFFFFFFFB), "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
ALONE = LauncherInfo(0, 0, 1, "127.0.0.1", 0, "python")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        (MEET, ALONE),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, ALONE),  # the shell of a batch job, as Slurm 22 makes it
        (BATCH_SHELL, ALONE),
        (LAUNCHED, LauncherInfo(3, 1, 4, "node1", 29500, "deepspeed")),
        ({**LAUNCHED, "TORCHELASTIC_RUN_ID": "none"}, LauncherInfo(3, 1, 4, "node1", 29500, "torchrun")),
        ({**SRUN, **MEET}, LauncherInfo(3, 1, 4, "node1", 29500, "srun")),
        # The world size that a batch script exports for all does not make its tasks a launcher's ranks.
        ({**SRUN, **MEET, "WORLD_SIZE": "4"}, LauncherInfo(3, 1, 4, "node1", 29500, "srun")),
        # srun without a number of tasks, as in a batch job with --ntasks-per-node alone.
        (
            {name: value for name, value in {**SRUN, **MEET}.items() if name != "SLURM_NTASKS"}
            | {"SLURM_STEP_NUM_TASKS": "4"},
            LauncherInfo(3, 1, 4, "node1", 29500, "srun"),
        ),
        # torchrun once a node under srun: Slurm's numbers are the agents', not the ranks'.
        ({**SRUN, "SLURM_NTASKS": "2", **LAUNCHED}, LauncherInfo(3, 1, 4, "node1", 29500, "deepspeed")),
        (
            {**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"},
            LauncherInfo(0, 0, 1, "127.0.0.1", 0, "srun"),
        ),
    ],
)
def test_who_started_us(environment: dict[str, str], expected: LauncherInfo) -> None:
    assert find(environment) == expected


@pytest.mark.parametrize("name", distributed.MPI_SIZES)
def test_processes_of_mpirun_do_not_each_train_alone(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"mpirun started 2 processes \({name}\).*unset {name} to train with one process"
    ):
        find({name: "2"})
    assert find({name: "1"}) == find({}) == ALONE
    assert find({**LAUNCHED, name: "4"}).world_size == 4
    assert find({**SRUN, **MEET, name: "4"}).launcher == "srun"


@given(st.sets(st.sampled_from(LAUNCHER_VARIABLES[1:]), max_size=3), st.booleans())
def test_a_rank_that_lacks_some_variables_is_refused_and_they_are_named(present: set[str], under_srun: bool) -> None:
    environment = {"RANK": "3", **{name: LAUNCHED[name] for name in present}, **(SRUN if under_srun else {})}
    with pytest.raises(UserError) as error:
        find(environment)
    named = str(error.value).split("but not ")[1].split(":")[0]
    assert set(named.split(", ")) == set(LAUNCHER_VARIABLES[1:]) - present


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (SRUN, "scontrol show hostnames"),
        ({**SRUN, "MASTER_ADDR": "node1"}, "MASTER_PORT"),
        ({**SRUN, "MASTER_PORT": "", "MASTER_ADDR": "node1"}, "MASTER_PORT"),
        ({"SLURM_STEP_ID": "0", **MEET}, "SLURM_PROCID, SLURM_LOCALID, SLURM_NTASKS"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE set, RANK not"),
        # RANK and its kind left exported in the shell that submits: every task would be rank 0 of 1.
        ({**SRUN, **LAUNCHED, "RANK": "0", "WORLD_SIZE": "1"}, "left in the shell that submitted the job. Unset RANK"),
        ({**LAUNCHED, "MASTER_PORT": "auto"}, "MASTER_PORT='auto'"),
        ({**LAUNCHED, "RANK": "-1"}, "RANK='-1'"),
        ({**LAUNCHED, "RANK": "4"}, "RANK=4 must be below WORLD_SIZE=4"),
    ],
)
def test_half_an_environment_is_refused_with_the_way_out(environment: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as error:
        find(environment)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "3", "WORLD_SIZE": "4"}, "or unset RANK, LOCAL_RANK and WORLD_SIZE to train with one process"),
        ({**LAUNCHED, "RANK": "4"}, "unset RANK, LOCAL_RANK and WORLD_SIZE to train with one process"),
        ({**SRUN, **MEET, "SLURM_PROCID": "9"}, "unset SLURM_STEP_ID to train with one process"),
        ({"SLURM_STEP_ID": "0"}, "start the ranks with srun, or unset it"),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "Unset them to train with one process"),
    ],
)
def test_unsetting_what_the_message_names_trains_with_one_process(environment: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        find(environment)
    named = ["SLURM_STEP_ID"] if "SLURM_STEP_ID" in environment else ["RANK", "LOCAL_RANK", "WORLD_SIZE"]
    left = {name: value for name, value in environment.items() if name not in named}
    assert find(left) == LauncherInfo(0, 0, 1, "127.0.0.1", 0, "python")


def test_what_srun_is_to_be_given_lets_its_ranks_meet() -> None:
    with pytest.raises(UserError, match="or export before srun: MASTER_PORT=29500 and MASTER_ADDR="):
        find(SRUN)
    assert find({**SRUN, "MASTER_PORT": "29500", "MASTER_ADDR": "node1"}).world_size == int(SRUN["SLURM_NTASKS"])


def test_helpers_of_a_process_that_joined_nobody() -> None:
    import torch

    assert distributed.is_main()
    assert distributed.broadcast_object({"a": 1}) == {"a": 1}
    assert distributed.all_reduce_max(3, -4) == [3, -4]
    assert distributed.all_reduce_sum(torch.tensor(2.0)).item() == 2.0


@pytest.mark.program
def test_a_data_worker_does_not_pay_for_torch() -> None:
    program = "import sys, m3p.training.stop as s; assert s.distributed.is_main(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"


RANK_PROGRAM = """
import os, sys, torch
from m3p.errors import UserError
from m3p import distributed
try:
    ranks = distributed.start(float(sys.argv[1]))
except UserError as error:
    print(error)
    distributed.leave(2)
total = distributed.all_reduce_sum(torch.tensor(float(ranks.rank + 1), device=ranks.device)).item()
largest = distributed.all_reduce_max(ranks.rank, -ranks.rank)
word = distributed.broadcast_object("from 0" if distributed.is_main() else "lost")
print(ranks.rank, ranks.world_size, ranks.device, ranks.launcher, os.environ["DS_ACCELERATOR"], total, largest, word)
distributed.finish()
print("unflushed", end="")
distributed.leave(7)
"""


def start_rank(environment: dict[str, str], timeout: int, tmp_path: Path) -> "subprocess.Popen[str]":
    """Start one rank that finds no compiler on its PATH and no operation built before."""
    return subprocess.Popen(
        [sys.executable, "-c", RANK_PROGRAM, str(timeout)],
        env={
            "PATH": str(tmp_path),
            "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
            "DS_ACCELERATOR": "cpu",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(tmp_path),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.launcher
def test_ranks_meet_talk_and_leave_without_a_compiler(tmp_path: Path) -> None:
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    numbers = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": "2"} for rank in range(2)]
    ranks = [start_rank({"SLURM_STEP_ID": "1", **meet, **number}, 60, tmp_path) for number in numbers]
    for rank, process in enumerate(ranks):
        output, _ = process.communicate(timeout=120)
        assert f"{rank} 2 cpu srun cpu 3.0 [1, 0] from 0\n" in output
        assert output.endswith("unflushed")
        assert process.returncode == 7


@pytest.mark.launcher
def test_one_process_needs_no_launcher_and_no_network_name(tmp_path: Path) -> None:
    process = start_rank({}, 60, tmp_path)
    output, _ = process.communicate(timeout=120)
    assert "0 1 cpu python cpu 1.0 [0, 0] from 0\n" in output
    assert process.returncode == 7


@pytest.mark.launcher
def test_ranks_that_do_not_meet_are_told_where_they_looked(tmp_path: Path) -> None:
    port = free_port()
    lonely = {**LAUNCHED, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    output, _ = start_rank(lonely, 2, tmp_path).communicate(timeout=120)
    assert "rank 3 of 4 did not meet the others at MASTER_ADDR=127.0.0.1" in output
    assert f"MASTER_PORT={port} within 2 s" in output


def test_an_accelerator_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "tpu")
    with pytest.raises(UserError, match="DS_ACCELERATOR=tpu"):
        distributed._pick_device(0)


@pytest.mark.parametrize(("visible", "expected"), [(8, 5), (1, 0), (4, 1)])
def test_the_gpu_is_one_that_the_rank_can_see(monkeypatch: pytest.MonkeyPatch, visible: int, expected: int) -> None:
    import torch

    chosen: list[object] = []
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert distributed._pick_device(local_rank=5) == torch.device("cuda", expected)
    assert chosen == [torch.device("cuda", expected)]
