"""The batch scripts on sites that set fewer variables than they should, and lack some of Slurm's commands."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import REPOSITORY

pytestmark = pytest.mark.program

SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift; done
echo "$MASTER_ADDR $MASTER_PORT" >"$M3P_HOME/ranks"
"""
ALL = {
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NODELIST": "node7",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_ARRAY_JOB_ID": "41",
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_RESTART_COUNT": "0",
    "SLURM_CPUS_PER_TASK": "1",
    "SLURMD_NODENAME": "node7",
}


def start(home: Path, environment: dict[str, str]) -> str:
    """Run slurm/pretrain.sh with a srun that notes where ranks would meet, and no other command of Slurm; return its words."""
    commands = home / "bin"
    commands.mkdir()
    (commands / "srun").write_text(SRUN)
    (commands / "python").write_text(f'#!/bin/sh\nexec {sys.executable} {REPOSITORY}/tests/slurm/stub.py "$@"\n')
    for name in ("sleep", "squeue", "scontrol"):
        (commands / name).write_text("#!/bin/sh\nexit 127\n")
    for command in commands.iterdir():
        command.chmod(0o755)
    (home / "slurm").symlink_to(REPOSITORY / "slurm")
    (home / "recipe").write_text(str(home / "run"))
    (home / "ds.json").touch()
    paths = {"PATH": f"{commands}:/usr/bin:/bin", "M3P_HOME": str(home), "M3P_PYTHON": str(commands / "python")}
    words = ("bash", str(REPOSITORY / "slurm/pretrain.sh"), str(home / "recipe"), str(home / "ds.json"))
    done = subprocess.run(
        words, env={**environment, **paths}, cwd=home, capture_output=True, text=True, check=False, timeout=100
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("missing", [name for name in ALL if name != "SLURM_JOB_ID"])
def test_ranks_start_whatever_one_variable_is_missing(tmp_path: Path, missing: str) -> None:
    said = start(tmp_path, {name: value for name, value in ALL.items() if name != missing})
    assert "unbound variable" not in said
    host, port = (tmp_path / "ranks").read_text().split()
    assert host
    assert 20000 <= int(port) < 30000


def test_ranks_start_where_only_the_job_has_a_number(tmp_path: Path) -> None:
    said = start(tmp_path, {"SLURM_JOB_ID": "42"})
    assert "unbound variable" not in said
    assert "starting ranks on this node" in said
    assert (tmp_path / "ranks").exists()


def test_outside_slurm_the_way_in_is_said(tmp_path: Path) -> None:
    assert "this is a batch script: submit it with sbatch" in start(tmp_path, {})
    assert not (tmp_path / "ranks").exists()
