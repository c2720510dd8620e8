"""Commands for the cluster that cluster.sh makes."""

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("cluster.sh")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


class Cluster:
    """Commands for a running cluster: node1 and node2, each with 4 processors and 2 pretended GPUs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, cwd: Path = REPOSITORY, environment: Mapping[str, str] | None = None) -> str:
        """Run `command` on the login host and return what it prints; a failure shows its messages."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("M3P_", "SLURM_"))}
        result = subprocess.run(
            [str(SCRIPT), "run", str(self.folder), *command],
            cwd=cwd,
            env={**inherited, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout.strip()

    def on(self, node: str, *command: str) -> None:
        """Run `command` on a node."""
        subprocess.run([str(SCRIPT), "on", str(self.folder), node, *command], check=True, timeout=60)

    def state(self, job: str) -> str:
        """Return the job's state and reason, such as `PENDING BeginTime`."""
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T %r").splitlines()[0]

    def wait(self, job: str, *states: str, seconds: float = 60) -> str:
        """Wait until `job` is in one of `states` (default: until it has ended) and return that state.

        A requeued job does not start before its old credential has expired; that wait is cut short, but not to within
        the second of the requeue, in which the new credential would pass for the old one.
        """
        end = time.monotonic() + seconds
        state = ""
        while time.monotonic() < end:
            state = self.state(job)
            if state.split()[0] in (states or ENDED):
                return state.split()[0]
            if state == "PENDING BeginTime":
                time.sleep(1.1)
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(0.2)
        pytest.fail(f"job {job} is {state} after {seconds} s, not {states or ENDED}\n{self.logs()}")

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return subprocess.check_output([str(SCRIPT), "logs", str(self.folder)], text=True)
