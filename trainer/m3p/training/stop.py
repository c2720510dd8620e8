"""Stopping without losing work, and telling the batch script about it. slurm/common.sh is the other side of this file.

Files in the run folder:
  STOP         made by anyone: the run saves a checkpoint, stops, and is not started again while the file is there
  status       written by rank 0 at the end: `done` after the evaluation, or `stopped WHY STEP`; absent while running and
               after a crash
  incarnation  the job that owns the folder; one that finds another's name here must not save any more
  owner.json   the process that rank 0 is, so that a second start is seen
  hangup.txt   what is printed after the terminal was closed

An exit code carries no meaning: srun reports the largest one of all tasks, and a killed peer changes it.
"""

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal

from pydantic import ValidationError

from m3p import distributed, locks
from m3p.atomic import write_text
from m3p.errors import UserError

# USR1 comes from the batch script before the time limit, TERM from scancel and preemption, USR2 from submitit, HUP from a
# terminal that is closed.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
GRACEFUL = (*WARNINGS, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
Reason = Literal["signal", "file"]
# In the order of their weight: a STOP file also says "do not start again", so it outweighs a signal.
REASONS: tuple[Reason | None, ...] = (None, "signal", "file")


class StopSignal:
    """Turns signals and the file STOP into one answer that all ranks get at the same step.

    The handlers are in place from construction on, and only set a flag; `restore` or the end of a `with` block takes
    them out. A second Ctrl-C interrupts at once; a second one of the others changes nothing. After that USR1 and USR2 are
    ignored: they would kill the evaluation.
    """

    def __init__(self, folder: Path) -> None:
        """Watch `folder`, the run folder, for the file STOP."""
        self.signalled = False
        self._stop_file, self._after_hangup = folder / "STOP", folder / "hangup.txt"
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        # Under nohup a hang-up is ignored, and the run is meant to go on.
        heard = [number for number in GRACEFUL if number != signal.SIGHUP or not _is_ignored(number)]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GRACEFUL)  # one that came before waits for this (run.py)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if number == signal.SIGHUP:
            self._leave_terminal()

    def _leave_terminal(self) -> None:
        """Print into a file from here on: writing to a terminal that is gone fails, and would end the run before its save."""
        file = os.open(self._after_hangup, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor in self._terminals:
            os.dup2(file, descriptor)
        os.close(file)

    def requested(self, step: int, busy: bool = False) -> tuple[Reason | None, bool]:
        """Say whether to stop after `step` and why, and whether any rank is `busy`: one collective for both.

        Every rank calls it at every step and gets the same answers.
        """
        mine: Reason | None = "signal" if self.signalled else None
        if distributed.is_main() and self._stop_file.exists():
            mine = "file"
        code, last, first, any_busy = distributed.all_reduce_max(REASONS.index(mine), step, -step, int(busy))
        assert last == -first, f"ranks are at different steps: {-first} to {last}"
        return REASONS[code], bool(any_busy)

    def restore(self) -> None:
        """Put back the handlers of TERM and INT; from here on the program is deaf to USR1 and USR2."""
        for number, handler in self._before.items():
            # To block them would not do: threads that training has started would still let them through.
            signal.signal(number, signal.SIG_IGN if number in WARNINGS else handler)

    def __enter__(self) -> "StopSignal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.restore()


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN


def check_no_stop_file(folder: Path) -> None:
    """Raise UserError on every rank where the run folder still holds the file STOP. Every rank calls it."""
    path = folder / "STOP"
    if distributed.broadcast_object(path.exists()):
        raise UserError(f"{path} is there: someone has stopped this run; remove the file to train on")


def ignore_in_worker(worker_id: int) -> None:
    """Make a data worker deaf to the signals that stop a run (a `worker_init_fn`).

    Slurm sends them to every process of a step, workers too. The trainer still needs their batches to end its step; a
    worker ends when its loader closes or its parent is gone.
    """
    for number in GRACEFUL:
        signal.signal(number, signal.SIG_IGN)


def write_done(folder: Path) -> None:
    """Say that the run is complete, its evaluation too. Rank 0 writes; the other ranks may call it too."""
    _write(folder / "status", "done")


def forget_status(folder: Path) -> None:
    """Take away what the last start said, which a crash of this one would leave as its own. Rank 0 only."""
    if distributed.is_main():
        (folder / "status").unlink(missing_ok=True)


def write_stopped(folder: Path, why: str, step: int) -> None:
    """Say that the run stopped early with a checkpoint after `step`. `why` is one word; only `signal` asks for a restart."""
    assert why.isalpha(), why
    _write(folder / "status", f"stopped {why} {step}")


def _write(path: Path, text: str) -> None:
    """Write one line so that a reader, after a crash at any instant, finds all of it or the old content. Rank 0 only."""
    if distributed.is_main():
        write_text(path, text + "\n")


class RunOwner:
    """This start of the run, as the owner of its folder.

    Two processes of one machine never train into one folder: the second is refused. A node that the network has cut off
    trains on while Slurm starts the job again elsewhere, and tasks of one job may by mistake be runs of their own; without
    the check before each save both would write checkpoints. The start that came last owns the folder.
    """

    def __init__(self, folder: Path) -> None:
        """Own `folder` under the name that the batch script gave (M3P_INCARNATION), else under one of our own.

        Every rank calls it. Raises UserError on all of them: a process of this machine trains there now, or a later job has
        taken over.
        """
        self._name_file, self._start_file = folder / "incarnation", folder / "owner.json"
        given = os.environ.get("M3P_INCARNATION")
        self.name = distributed.broadcast_object(given or f"{socket.gethostname()}.{os.getpid()}")
        self._refuse_a_second_start()
        self._start = distributed.broadcast_object(locks.this_process().model_dump_json())
        _write(self._start_file, self._start)
        if given is None:
            _write(self._name_file, self.name)
        self.check()  # the batch script has written the name that it gave; by now a later job may have written its own

    def check(self) -> None:
        """Raise UserError on every rank if the folder has a new owner. Call it on all ranks before each save."""
        found = distributed.broadcast_object((_read(self._name_file), _read(self._start_file)))
        if found[0] != self.name:
            raise UserError(
                f"{self._name_file} names {found[0] or 'nobody'}, not this job ({self.name}): another job has taken over this "
                "run. This one stops without saving; stop the other first, or train into another run.folder"
            )
        if found[1] != self._start:
            raise UserError(
                f"{self._start_file} names another start of this run ({found[1] or 'none'}), which has taken over. This one "
                "stops without saving. Where both belong to one job, its tasks train apart: unset RANK, LOCAL_RANK and "
                "WORLD_SIZE in the shell that submits"
            )

    def _refuse_a_second_start(self) -> None:
        """Raise UserError on every rank where another process of this machine trains into the folder."""
        other = None
        if distributed.is_main():
            with suppress(ValidationError):
                other = locks.Holder.model_validate_json(_read(self._start_file))
            if other is not None and (other == locks.this_process() or not locks.runs_here(other)):
                other = None
        pid = distributed.broadcast_object(other.pid if other else None)
        if pid is not None:
            raise UserError(
                f"{self._start_file.parent} is trained by process {pid} of this machine now. Wait, stop it (kill {pid}: it "
                "saves a checkpoint first), or train into another run.folder"
            )


def _read(path: Path) -> str:
    """Return what a file says; "" where there is none."""
    with suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""
