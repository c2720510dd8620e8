"""slurm/*.sh on a real Slurm, with tests/slurm/stub.py in the trainer's place."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from m3p.distributed import LauncherInfo, find
from tests.slurm.cluster import REPOSITORY, Cluster

pytestmark = pytest.mark.slurm

SCRIPTS = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "slurm").glob("*.sh"))
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")


@dataclass
class Run:
    """A run folder of the stub, and the jobs that train it."""

    cluster: Cluster
    home: Path
    recipe: Path
    folder: Path

    def submit(self, *settings: str, options: tuple[str, ...] = TWO_NODES, **environment: str) -> str:
        """Submit slurm/pretrain.sh and return the job's number."""
        script = ("slurm/pretrain.sh", str(self.recipe), "ds_configs/zero1.json", *settings)
        return self.submit_script(*options, *script, environment=environment)

    def submit_script(self, *command: str, cwd: Path = REPOSITORY, environment: dict[str, str] | None = None) -> str:
        """Submit any script from the repository, with the stub as interpreter, and return the job's number."""
        environment = {"M3P_PYTHON": str(self.home / "python"), **(environment or {})}
        sbatch = ("sbatch", "--parsable", f"--output={self.home}/job-%A.out")
        return self.cluster.run(*sbatch, *command, cwd=cwd, environment=environment)

    def starts(self, rank: int = 0) -> list[dict[str, Any]]:
        """Return what the rank noted at each of its starts."""
        path = self.folder / f"starts.{rank}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_steps(self, starts: int = 1) -> None:
        """Wait until the latest start has written a checkpoint of its own."""
        end = time.monotonic() + 30
        latest = self.folder / "checkpoints" / "latest"
        while time.monotonic() < end:
            noted = self.starts()
            if len(noted) == starts and latest.exists() and int(latest.read_text() or 0) > noted[-1]["first"]:
                return
            time.sleep(0.05)
        pytest.fail(f"start {starts} has made no checkpoint\n{self.output()}")

    def output(self) -> str:
        """Return what the jobs' batch scripts said."""
        return "".join(path.read_text() for path in sorted(self.home.glob("job-*.out")))

    def status(self) -> str:
        """Return the status that the trainer left."""
        return (self.folder / "status").read_text().strip()


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path) -> Run:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("stub.py")} "$@"\n')
    python.chmod(0o755)
    recipe = tmp_path / "a recipe.yaml"
    recipe.write_text(str(tmp_path / "runs" / "a run"))
    return Run(cluster, tmp_path, recipe, tmp_path / "runs" / "a run")


@pytest.mark.parametrize(
    ("options", "visible"),
    [
        (("--gpus-per-node=2", "--cpus-per-task=2"), ["0,1"] * 4),
        # One GPU a task; and an environment that sbatch does not pass on, which srun must not hold back from the ranks.
        (("--gpus-per-task=1", "--gpus-per-node=2", "--export=M3P_PYTHON", "--cpus-per-task=2"), ["0", "1", "0", "1"]),
    ],
)
def test_every_rank_knows_its_place(run: Run, options: tuple[str, ...], visible: list[str]) -> None:
    job = run.submit("a.b=c d", "stub.steps=1", options=("--nodes=2", "--ntasks-per-node=2", *options))
    assert run.cluster.wait(job) == "COMPLETED", run.output()
    starts = [run.starts(rank) for rank in range(4)]
    assert [len(start) for start in starts] == [1] * 4
    environments = [start[0]["environment"] for start in starts]
    port = int(environments[0]["MASTER_PORT"])
    assert [find(environment) for environment in environments] == [
        LauncherInfo(rank, rank % 2, 4, "node1", port, "srun") for rank in range(4)
    ]
    assert [environment["SLURMD_NODENAME"] for environment in environments] == ["node1", "node1", "node2", "node2"]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == visible
    assert environments[0]["SRUN_CPUS_PER_TASK"] == "2"
    for start in starts:
        assert start[0]["argv"][1:] == [
            *("-u", "-m", "m3p.training.main", "--recipe", str(run.recipe)),
            *("--deepspeed_config", "ds_configs/zero1.json", "a.b=c d", "stub.steps=1"),
        ]
    assert run.status() == "done"
    assert len(list((run.folder / "logs").glob(f"{job}.0.rank[0-3].log"))) == 4


@pytest.mark.parametrize("to_batch_script", [True, False])
def test_a_signal_ends_in_a_checkpoint_and_the_requeued_job_goes_on(run: Run, to_batch_script: bool) -> None:
    """--signal=B:USR1 reaches the batch script alone; `scancel -s` every process of the ranks, data workers too."""
    job = run.submit("stub.steps=40")
    run.wait_for_steps()
    run.cluster.run("scancel", *(["--batch"] if to_batch_script else []), "--signal=USR1", job)
    assert run.cluster.wait(job) == "COMPLETED", run.output()
    first, second = run.starts()
    assert (first["first"], run.status()) == (0, "done")
    assert 5 <= second["first"] < 40
    assert f"requeue: stopped signal {second['first']}; 0 starts without" in run.output()
    assert [start["environment"]["M3P_INCARNATION"] for start in (first, second)] == [f"{job}.0", f"{job}.1"]
    assert first["environment"]["MASTER_PORT"] != second["environment"]["MASTER_PORT"]


def test_the_signal_of_the_directive_comes_before_the_time_limit(run: Run) -> None:
    job = run.submit("stub.steps=400", options=(*TWO_NODES, "--time=60"))
    run.wait_for_steps()
    run.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=5")
    run.cluster.wait(job, "PENDING", seconds=45)
    assert "got SIGUSR1\n" in run.output()
    assert run.status().startswith("stopped signal ")
    run.cluster.run("scancel", job)


def test_a_failing_run_is_given_up_until_it_is_submitted_again(run: Run) -> None:
    failure = ("stub.fail_rank=1", "stub.fail_at=3")
    job = run.submit(*failure, "stub.fail_starts=99", M3P_MAX_FAILS="2")
    assert run.cluster.wait(job) == "FAILED"
    assert len(run.starts()) == 2
    assert "giving up: 2 starts in a row without a new checkpoint" in run.output()
    assert not (run.folder / "status").exists()
    assert run.cluster.wait(run.submit(*failure, "stub.fail_starts=1", M3P_MAX_FAILS="2")) == "COMPLETED", run.output()
    assert (len(run.starts()), run.status()) == (4, "done")


def test_failures_that_bring_the_run_forward_do_not_end_it(run: Run) -> None:
    job = run.submit("stub.fail_rank=1", "stub.fail_at=9", "stub.fail_starts=1", M3P_MAX_FAILS="0")
    assert run.cluster.wait(job) == "COMPLETED", run.output()
    assert [start["first"] for start in run.starts()] == [0, 5]
    assert run.status() == "done"


def test_a_stop_file_ends_the_run_until_it_is_removed(run: Run) -> None:
    job = run.submit("stub.steps=400")
    run.wait_for_steps()
    (run.folder / "STOP").touch()
    assert run.cluster.wait(job) == "COMPLETED", run.output()
    assert run.status().startswith("stopped file ")
    assert run.cluster.wait(run.submit()) == "COMPLETED"
    assert len(run.starts()) == 1
    (run.folder / "STOP").unlink()
    # This one must not take the old status for its own when it crashes.
    job = run.submit("stub.steps=15", "stub.fail_rank=1", "stub.fail_at=3", "stub.fail_starts=1")
    assert run.cluster.wait(job) == "COMPLETED", run.output()
    assert (len(run.starts()), run.status()) == (3, "done")


def test_a_controller_that_is_away_does_not_read_as_a_cancelled_job(run: Run) -> None:
    away = run.home / "bin" / "squeue"
    away.parent.mkdir()
    away.write_text(f'#!/bin/sh\nrm {away}\necho "Unable to contact slurm controller" >&2\nexit 1\n')
    away.chmod(0o755)
    job = run.submit("stub.steps=10", "stub.signal_at=5", PATH=f"{away.parent}:{os.environ['PATH']}")
    assert run.cluster.wait(job) == "COMPLETED", run.output()
    assert not away.exists()
    assert (len(run.starts()), run.status()) == (2, "done")


def test_a_cancelled_job_saves_and_does_not_come_back(run: Run) -> None:
    job = run.submit("stub.steps=400")
    run.wait_for_steps()
    run.cluster.run("scancel", job)
    assert run.cluster.wait(job, "CANCELLED", "PENDING", "RUNNING") in {"CANCELLED", "RUNNING"}
    assert run.cluster.wait(job) == "CANCELLED"
    assert "not requeued" in run.output()
    assert run.status().startswith("stopped signal ")


def test_the_tasks_of_an_array_carry_one_run_to_its_end(run: Run) -> None:
    """The last task has the array's own number: to requeue that number would start the cancelled task again, too."""
    array = run.submit("stub.steps=35", "stub.signal_at=30", options=(*TWO_NODES, "--array=1-2%1"))
    run.wait_for_steps()
    run.cluster.run("scancel", f"{array}_1")
    run.wait_for_steps(starts=2)
    second = run.starts()[1]["environment"]
    assert (second["SLURM_JOB_ID"], second["M3P_INCARNATION"]) == (array, f"{array}_2.0")
    assert run.cluster.wait(f"{array}_2") == "COMPLETED", run.output()
    assert run.cluster.state(f"{array}_1").startswith("CANCELLED")
    assert (len(run.starts()), run.status()) == (3, "done")


def test_the_rest_of_a_chain_exits_at_once(run: Run) -> None:
    options = (*TWO_NODES, "--job-name=chain", "--dependency=singleton")
    chain = [run.submit("stub.steps=5", options=options) for _ in range(3)]
    assert [run.cluster.wait(job) for job in chain] == ["COMPLETED"] * 3, run.output()
    assert (len(run.starts()), run.status()) == (1, "done")


def test_a_run_that_another_job_took_over_is_neither_saved_nor_requeued(run: Run) -> None:
    job = run.submit("stub.steps=400")
    run.wait_for_steps()
    (run.folder / "incarnation").write_text("999.0\n")
    assert run.cluster.wait(job) == "COMPLETED", run.output()
    assert "job 999.0 has taken over" in run.output()
    assert "another job has taken over this run" in (run.folder / "logs" / f"{job}.0.rank0.log").read_text()


def test_a_refused_recipe_fails_at_once_and_is_not_requeued(run: Run) -> None:
    run.recipe.unlink()
    job = run.submit()
    assert run.cluster.wait(job) == "FAILED"
    assert "RECIPE or DS_CONFIG is refused" in run.output()


def test_settings_that_are_not_there_fail_at_once_and_are_not_requeued(run: Run) -> None:
    job = run.submit_script(*TWO_NODES, "slurm/pretrain.sh", str(run.recipe), "ds_configs/none.json")
    assert run.cluster.wait(job) == "FAILED"
    assert "RECIPE or DS_CONFIG is refused" in run.output()
    assert not run.starts()


def test_a_script_that_cannot_find_its_checkout_says_what_it_needs(run: Run) -> None:
    job = run.submit_script(*TWO_NODES, str(REPOSITORY / "slurm" / "pretrain.sh"), "a", "b", cwd=run.home)
    assert run.cluster.wait(job) == "FAILED"
    assert f"no checkout at {run.home}: submit from it, or set M3P_HOME" in run.output()


def test_a_job_may_be_submitted_from_elsewhere(run: Run) -> None:
    (run.home / "ds.json").touch()
    script = (str(REPOSITORY / "slurm" / "finetune.sh"), "a recipe.yaml", "ds.json", "stub.steps=1")
    job = run.submit_script(*TWO_NODES, *script, cwd=run.home, environment={"M3P_HOME": str(REPOSITORY)})
    assert run.cluster.wait(job) == "COMPLETED", run.output()
    assert run.status() == "done"


@pytest.mark.parametrize("script", ["slurm/pretrain.sh", "slurm/finetune.sh", "slurm/evaluate.sh"])
def test_a_script_without_its_arguments_says_which(run: Run, script: str) -> None:
    job = run.submit_script(
        "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", script
    )
    assert run.cluster.wait(job) == "FAILED"
    assert "arguments are missing: R" in run.output()


def test_evaluation_is_one_process_with_all_its_arguments(run: Run) -> None:
    job = run.submit_script("--cpus-per-task=2", "slurm/evaluate.sh", "runs/a run", "dev", "--rerank", "16")
    assert run.cluster.wait(job) == "COMPLETED", run.output()
    assert run.output() == "runs/a run dev --rerank 16\n"


def test_the_overrides_decide_where_the_run_is(run: Run) -> None:
    job = run.submit(f"run.folder={run.home}/elsewhere", "stub.steps=1")
    assert run.cluster.wait(job) == "COMPLETED", run.output()
    assert (run.home / "elsewhere" / "status").read_text() == "done\n"
    assert not run.folder.exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_are_sound(script: str) -> None:
    subprocess.run(["bash", "-n", script], cwd=REPOSITORY, check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--external-sources", script], cwd=REPOSITORY, check=True)


def test_slurm_takes_the_directives(cluster: Cluster) -> None:
    """As shipped they ask for more than this cluster has: then Slurm says so, having read all of them."""
    command = ("sbatch", "--test-only", *TWO_NODES, "slurm/pretrain.sh", "a", "b")
    cluster.run(*command)
    with pytest.raises(AssertionError, match="node configuration is not available"):
        cluster.run(*command[:2], *command[-3:])
