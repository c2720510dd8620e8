"""Stands in for the interpreter and trainer that slurm/pretrain.sh starts: the same contract, no torch, no model.

It answers `-m m3p show RECIPE --deepspeed_config FILE ... --field run.folder` (the recipe is a file that holds the folder),
`-u -m m3p.training.main --recipe ...`, and `-m m3p evaluate ...`, which only prints its arguments. Settings:
stub.steps; stub.signal_at, a step of its first start where it signals itself; and for failures: rank stub.fail_rank
dies at step stub.fail_at of each of its first stub.fail_starts starts.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from m3p import distributed
from m3p.training.stop import RunOwner, StopSignal, ignore_in_worker, write_done, write_stopped

STEP_SECONDS = 0.1
CHECKPOINT_EVERY = 5


class Files:
    """Collectives of the ranks of one start, over files: like real ones, they do not return when a rank is missing."""

    def __init__(self, folder: Path) -> None:
        self.rank, self.world_size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
        self.folder = folder / "exchange" / os.environ["M3P_INCARNATION"]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.calls = 0

    def gather(self, value: Any) -> list[Any]:
        """Return what each rank gave."""
        self.calls += 1
        paths = [self.folder / f"{self.calls}.{rank}" for rank in range(self.world_size)]
        temporary = self.folder / f"{self.rank}.tmp"
        temporary.write_text(json.dumps(value))
        temporary.rename(paths[self.rank])
        while not all(path.exists() for path in paths):
            time.sleep(0.01)
        return [json.loads(path.read_text()) for path in paths]

    def largest(self, *values: int) -> list[int]:
        """Return the largest of each value over the ranks."""
        return [max(column) for column in zip(*self.gather(values), strict=True)]

    def replace_collectives(self) -> None:
        """Make m3p.distributed talk over these files."""
        distributed.is_main = lambda: self.rank == 0
        distributed.broadcast_object = lambda value: self.gather(value)[0]
        distributed.all_reduce_max = self.largest


def start_worker() -> int:
    """Fork a data worker that does nothing until its parent is gone, and return its number."""
    parent, worker = os.getpid(), os.fork()
    if worker == 0:
        ignore_in_worker(0)
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(0)
    return worker


def train(folder: Path, settings: dict[str, str]) -> None:
    """Count steps on every rank; rank 0 writes checkpoints, all may write the status."""
    files, restarts = Files(folder), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    files.replace_collectives()
    fails = str(files.rank) == settings.get("stub.fail_rank") and restarts < int(settings["stub.fail_starts"])
    latest = folder / "checkpoints" / "latest"
    latest.parent.mkdir(exist_ok=True)
    first = distributed.broadcast_object(int(latest.read_text()) if latest.exists() else 0)
    worker, stop, incarnation = start_worker(), StopSignal(folder), RunOwner(folder)
    with (folder / f"starts.{files.rank}").open("a") as file:
        file.write(json.dumps({"first": first, "argv": sys.argv, "environment": dict(os.environ)}) + "\n")
    reason, step = None, first
    while step < int(settings.get("stub.steps", "20")) and reason is None:
        time.sleep(STEP_SECONDS)
        step += 1
        if fails and step == first + int(settings["stub.fail_at"]):
            os.kill(os.getpid(), signal.SIGKILL)
        if restarts == 0 and str(step) == settings.get("stub.signal_at"):
            os.kill(os.getpid(), signal.SIGUSR1)
        reason, _ = stop.requested(step)
        if reason is not None or step % CHECKPOINT_EVERY == 0:
            incarnation.check()
            if files.rank == 0:
                latest.with_suffix(".tmp").write_text(str(step))
                latest.with_suffix(".tmp").rename(latest)
    os.kill(worker, 0)  # raises if a signal has ended the worker
    os.kill(worker, signal.SIGKILL)
    if reason is None:
        write_done(folder)
    else:
        write_stopped(folder, reason, step)


def folder_of(recipe: str, settings: dict[str, str]) -> Path:
    """Return the run folder: the override, else what the recipe file holds."""
    return Path(settings.get("run.folder") or Path(recipe).read_text().strip())


def main() -> None:
    """Be whatever the arguments ask for."""
    arguments = sys.argv[1:]
    settings = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if arguments[:3] == ["-m", "m3p", "show"]:
        assert arguments[-2:] == ["--field", "run.folder"]
        assert arguments[4] == "--deepspeed_config"
        if not Path(arguments[5]).is_file():
            sys.exit(f"error: DeepSpeed config {arguments[5]!r}: there is no such file")
        print(folder_of(arguments[3], settings))
    elif arguments[:3] == ["-m", "m3p", "evaluate"]:
        print(*arguments[3:])
    else:
        assert arguments[:4] == ["-u", "-m", "m3p.training.main", "--recipe"]
        assert arguments[5] == "--deepspeed_config"
        train(folder_of(arguments[4], settings), settings)


main()
