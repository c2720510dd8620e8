"""The real trainer under slurm/pretrain.sh: two nodes, one CPU rank on each, every stop and restart made by Slurm."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import REPOSITORY, Cluster
from tests.tiny import make_tiny

pytestmark = pytest.mark.slurm

STEPS = 120  # enough that a signal sent after step 25 arrives well before the end, on a slow machine too
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")


@dataclass
class Job:
    """One run on the cluster."""

    cluster: Cluster
    folder: Path
    number: str

    def figures(self) -> dict[int, dict[str, Any]]:
        """Return the figures of each step but for the times; of a step that was done twice, the latest."""
        path = self.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        names = ("loss", "losses", "learning_rate", "gradient_norm")
        return {line["step"]: {name: line[name] for name in names} for line in lines}

    def wait_for_step(self, step: int) -> None:
        """Wait until `step` is done."""
        end = time.monotonic() + 180
        while time.monotonic() < end:
            if max(self.figures(), default=0) >= step:
                return
            time.sleep(0.05)
        pytest.fail(f"no step {step} after 180 s\n{self.output()}")

    def wait(self) -> str:
        """Wait for the job's end and return its state."""
        return self.cluster.wait(self.number, seconds=180)

    def output(self) -> str:
        """Return what batch script and ranks said."""
        paths = [self.folder.parent / f"job-{self.number}.out", *sorted((self.folder / "logs").glob("*"))]
        return "\n".join(f"--- {path}\n{path.read_text()}" for path in paths if path.exists())


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def submit(cluster: Cluster, recipe: Path, folder: Path) -> Job:
    """Train the recipe into `folder`, with data workers, on the two nodes."""
    settings = (f"run.folder={folder}", f"run.steps={STEPS}", "run.checkpoint_every=20", "data.workers=1")
    sbatch = ("sbatch", "--parsable", f"--output={folder.parent}/job-%j.out", *TWO_NODES)
    script = ("slurm/pretrain.sh", str(recipe), str(REPOSITORY / "ds_configs" / "zero1.json"))
    number = cluster.run(*sbatch, *script, *settings, environment={"M3P_PYTHON": str(_interpreter(folder.parent))})
    return Job(cluster, folder, number)


def _interpreter(folder: Path) -> Path:
    """Return a file that becomes this interpreter, as one for a container does (docs/clusters.md)."""
    path = folder / "python-in-container"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def left_alone(cluster: Cluster, recipe: Path) -> Job:
    """A run that nothing disturbs."""
    job = submit(cluster, recipe, recipe.parent / "left-alone")
    assert job.wait() == "COMPLETED", job.output()
    return job


def test_two_nodes_train_to_the_end(left_alone: Job) -> None:
    assert (left_alone.folder / "status").read_text() == "done\n"
    assert sorted(left_alone.figures()) == list(range(1, STEPS + 1))
    environment = json.loads((left_alone.folder / "environment.json").read_text())
    assert (environment["ranks"], environment["launcher"]) == (2, "srun")
    assert (left_alone.folder / "checkpoints" / "latest").read_text() == f"step-{STEPS:08d}\n"


def test_a_run_stopped_by_a_signal_and_requeued_ends_as_if_left_alone(
    cluster: Cluster, recipe: Path, left_alone: Job
) -> None:
    job = submit(cluster, recipe, recipe.parent / "stopped")
    job.wait_for_step(25)
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    assert job.wait() == "COMPLETED", job.output()
    assert "requeue: stopped signal" in job.output()
    assert job.figures() == left_alone.figures()


def test_a_killed_rank_costs_only_the_steps_since_the_last_checkpoint(
    cluster: Cluster, recipe: Path, left_alone: Job
) -> None:
    job = submit(cluster, recipe, recipe.parent / "killed")
    job.wait_for_step(25)
    cluster.on("node2", "pkill", "-KILL", "--oldest", "--full", f"run.folder={job.folder}")
    assert job.wait() == "COMPLETED", job.output()
    assert "no status: the ranks ended without saving; 0 starts without a new checkpoint" in job.output(), job.output()
    assert job.figures() == left_alone.figures()
