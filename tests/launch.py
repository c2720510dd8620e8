"""Runs the trainer on one or several ranks, and reads what it wrote."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.forked import numbered, run_forks

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(
    recipe: Path,
    ds_config: Path,
    ranks: int,
    *overrides: str,
    check: bool = True,
    program: Path = ROOT / "trainer" / "run.py",
    accelerator: str = "cpu",
    launcher: bool = False,
    seconds: float = 300,
) -> "subprocess.CompletedProcess[str]":
    """Run `trainer/run.py ...` (or a `program` that wraps it) on so many ranks to its end.

    The ranks are forks of a process with their imports (tests/forked.py); with `launcher`, and on a GPU, they are started by
    `deepspeed --num_gpus RANKS`, as a user starts them. What has not ended after so many `seconds` is ended.
    """
    arguments = ["--recipe", str(recipe), "--deepspeed_config", str(ds_config), *overrides]
    if launcher or accelerator != "cpu":
        command = ["deepspeed", "--num_gpus", str(ranks), "--master_port", str(free_port()), str(program), *arguments]
        done = subprocess.run(
            command,
            env=environment(accelerator),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    else:
        done = _forked(program, [arguments] * ranks, seconds)
    if check and done.returncode:
        raise AssertionError(
            f"{program.name} {' '.join(arguments)}\nended with {done.returncode}:\n"
            f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        )
    return done


def environment(accelerator: str) -> dict[str, str]:
    """Return the variables for a program that this environment's Python runs on one core of two."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "LOCAL_SIZE": "2",  # so that it takes one core: another test may run beside it
        "DS_ACCELERATOR": accelerator,
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def _forked(program: Path, arguments: list[list[str]], seconds: float) -> "subprocess.CompletedProcess[str]":
    """Run forked ranks; their output is that of all, the exit code the first that is not 0."""
    variables = {**environment("cpu"), "MASTER_PORT": str(free_port())}
    return _run_forks(program, arguments, numbered(variables, len(arguments)), seconds)


def alone(program: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run `python PROGRAM ARGUMENTS...` as a fork (tests/forked.py), without a launcher; `variables` are set in addition."""
    return _run_forks(program, [list(arguments)], [{**environment("cpu"), **variables}], 300)


def _run_forks(
    program: Path, arguments: list[list[str]], environments: list[dict[str, str]], seconds: float
) -> "subprocess.CompletedProcess[str]":
    with tempfile.TemporaryDirectory() as folder:
        files = (Path(folder) / "out", Path(folder) / "err")
        codes = run_forks(program, arguments, environments, [files] * len(arguments), seconds)
        out, err = (path.read_text() for path in files)
    return subprocess.CompletedProcess([str(program)], next((code for code in codes if code), 0), out, err)


def as_ranks(recipe: Path, ds_config: Path, *overrides: list[str]) -> list[tuple[int, str]]:
    """Run one rank for each list of overrides, as ranks of one node: -> (exit code, output) of each."""
    usual = ["--recipe", str(recipe), "--deepspeed_config", str(ds_config)]
    with tempfile.TemporaryDirectory() as folder:
        files = [(path, path) for rank in range(len(overrides)) for path in [Path(folder) / f"rank-{rank}"]]
        variables = numbered({**environment("cpu"), "MASTER_PORT": str(free_port())}, len(overrides))
        arguments = [[*usual, *mine] for mine in overrides]
        codes = run_forks(ROOT / "trainer" / "run.py", arguments, variables, files)
        return [(code, path.read_text()) for code, (path, _) in zip(codes, files, strict=True)]


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
