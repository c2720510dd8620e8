"""Starts the trainer as a user does, with the real deepspeed launcher, and reads what it wrote."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

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
) -> "subprocess.CompletedProcess[str]":
    """Run `deepspeed --num_gpus RANKS trainer/run.py ...` (or a `program` that wraps it) to its end."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": accelerator,
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["deepspeed", "--num_gpus", str(ranks), "--master_port", str(free_port()), str(program)]
    command += ["--recipe", str(recipe), "--deepspeed_config", str(ds_config), *overrides]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if check and done.returncode:
        raise AssertionError(
            f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        )
    return done


def as_ranks(recipe: Path, ds_config: Path, *overrides: list[str]) -> list[tuple[int, str]]:
    """Start one rank for each list of overrides, each by hand, as ranks of one node: -> (exit code, output) of each."""
    port = str(free_port())
    environment = {**os.environ, "WORLD_SIZE": str(len(overrides)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(ROOT / "trainer" / "run.py"), "--recipe", str(recipe)]
    command += ["--deepspeed_config", str(ds_config)]
    started = [
        subprocess.Popen(
            [*command, *mine],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, mine in enumerate(overrides)
    ]
    return [(one.returncode, out) for one in started for out in [one.communicate(timeout=200)[0]]]


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
