"""Runs with faults: starts them by the real launcher or as forked ranks, kills their processes, and compares what is left."""

import json
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from m3p.checkpoints import files
from m3p.checkpoints.files import Reader, read_state
from m3p.checkpoints.read import newest_whole
from tests.forked import numbered, run_forks
from tests.launch import ROOT, environment, free_port

RUNNER = ROOT / "tests" / "chaos" / "runner.py"


@dataclass
class Job:
    """One start of a run."""

    process: "subprocess.Popen[str]"
    output: Path

    def tree(self) -> dict[str, list[psutil.Process]]:
        """Return the live processes by part: launcher, rank, worker."""
        found: dict[str, list[psutil.Process]] = {"launcher": [], "rank": [], "worker": []}
        try:
            every = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return found
        for one in every:
            try:
                words, parent = one.cmdline(), one.parent()
                if "deepspeed.launcher.launch" in words:
                    found["launcher"].append(one)
                elif str(RUNNER) in words and parent is not None:
                    of_rank = str(RUNNER) in parent.cmdline() and "deepspeed.launcher.launch" not in parent.cmdline()
                    found["worker" if of_rank else "rank"].append(one)
            except psutil.NoSuchProcess:
                continue
        return found

    def wait(self, seconds: float = 240) -> int:
        """Wait for the launcher's end; return its exit code."""
        return self.process.wait(timeout=seconds)

    def text(self) -> str:
        """Return what it printed."""
        return self.output.read_text()


def start(
    recipe: Path, zero: Path, ranks: int, faults: list[dict[str, Any]], *overrides: str, name: str, folder: Path
) -> Job:
    """Start a run by `deepspeed` in the background; its output and faults are files in `folder`."""
    output = folder / f"{name}.out"
    command = ["deepspeed", "--num_gpus", str(ranks), "--master_port", str(free_port()), str(RUNNER)]
    command += _arguments(recipe, zero, faults, overrides, folder / f"{name}.faults.json")
    with output.open("w") as file:
        process = subprocess.Popen(
            command, env=environment("cpu"), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, text=True
        )
    return Job(process, output)


def _arguments(
    recipe: Path, zero: Path, faults: list[dict[str, Any]], overrides: Sequence[str], faults_file: Path
) -> list[str]:
    """Write the faults, and return the arguments of runner.py."""
    faults_file.write_text(json.dumps(faults))
    return ["--recipe", str(recipe), "--deepspeed_config", str(zero), str(faults_file), *overrides]


def fork(
    recipe: Path, zero: Path, ranks: int, faults: list[dict[str, Any]], *overrides: str, name: str, folder: Path
) -> tuple[list[int], str]:
    """Run forked ranks (tests/forked.py) to their end: -> their exit codes, what they printed."""
    output = folder / f"{name}.out"
    output.unlink(missing_ok=True)
    arguments = _arguments(recipe, zero, faults, overrides, folder / f"{name}.faults.json")
    variables = {**environment("cpu"), "MASTER_PORT": str(free_port())}
    codes = run_forks(RUNNER, [arguments] * ranks, numbered(variables, ranks), [(output, output)] * ranks)
    return codes, output.read_text()


def run(
    recipe: Path, zero: Path, ranks: int, faults: list[dict[str, Any]], *overrides: str, name: str, folder: Path
) -> str:
    """Run forked ranks to their end, which must be a good one; return what they printed."""
    codes, text = fork(recipe, zero, ranks, faults, *overrides, name=name, folder=folder)
    assert not any(codes), f"exit codes {codes}\n{text[-6000:]}"
    return text


def kill(processes: list[psutil.Process]) -> None:
    """Kill these processes, at once and without a chance to tidy up."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def last_step(run_folder: Path) -> int:
    """Return the last step in a run's metrics; 0 where there is none."""
    path = run_folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except json.JSONDecodeError:
            continue
    return 0


def metrics_file(run_folder: Path) -> int | None:
    """Return the identity of a run's metrics.jsonl, which every start writes anew; None where there is none."""
    path = run_folder / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None


def wait_for_step(job: Job, run_folder: Path, step: int, before: int | None, seconds: float = 240) -> None:
    """Wait until this start of the run has done `step`, or has ended. `before`: `metrics_file` before it started."""
    end = time.monotonic() + seconds
    while (metrics_file(run_folder) == before or last_step(run_folder) < step) and job.process.poll() is None:
        assert time.monotonic() < end, f"no step {step} after {seconds} s\n{job.text()[-4000:]}"
        time.sleep(0.05)


def newest_step(run_folder: Path) -> int:
    """Return the step of the newest whole checkpoint; 0 where there is none."""
    newest, _ = newest_whole(run_folder)
    return 0 if newest is None else read_state(newest).step


def read_shares(folder: Path) -> Reader:
    """Open a checkpoint, or a folder of shares alone: that one gets the state.json that names them."""
    if not (folder / files.STATE_FILE).exists():
        shares = {path.name: files.describe(path) for path in sorted(folder.glob("rank-*"))}
        fields: dict[str, Any] = {"format_version": files.FORMAT_VERSION, "step": 0, "ranks": len(shares)}
        files.write_state(folder, files.State(**fields, order_version=0, recipe={}, data={}, files=shares))
    return Reader(folder)


def tensors(folder: Path) -> dict[str, Tensor]:
    """Return weights and moments of a checkpoint, or of a folder of shares, by "KIND/NAME"."""
    with read_shares(folder) as reader:
        kinds = ("weight", "exp_avg", "exp_avg_sq")
        return {f"{kind}/{name}": reader.whole(kind, name) for name in reader.shapes for kind in kinds}


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Compare bit by bit."""
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different, different
