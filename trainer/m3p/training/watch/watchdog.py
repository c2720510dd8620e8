"""Ends a run that has stalled, and says where: stacks/rank-00000.txt of every rank holds its last turn and its stacks.

The clock is faulthandler's own thread, which needs no Python to run: it fires while a rank waits inside a collective,
inside a GPU call, or for its loader. Ranks move in step, so when one stalls they all fire at about the same time. A thread
of Python prints a line a moment before; a rank that is stopped, or holds the interpreter's lock, cannot, but the others do.
"""

import faulthandler
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from m3p.terminal import warn

LINE = 160
"""Bytes kept in front of the stacks for the last turn."""
LATER = 60.0
"""Seconds by which collectives time out after the watchdog has written its stacks."""
SPOKEN = 1.0
"""Seconds from the printed line to the stacks and the end."""


class Watchdog:
    """Fires when `beat` is not called for long enough.

    Args:
        folder: the run folder.
        rank: this rank.
        first_seconds: patience until `first_step_done`; building kernels and filling caches takes long.
        seconds: patience from then on; not above `first_seconds`.
    """

    def __init__(self, folder: Path, rank: int, first_seconds: float, seconds: float) -> None:
        self._path = folder / "stacks" / f"rank-{rank:05d}.txt"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._seconds, self._later, self._last = first_seconds, seconds, "starting"
        self._file = self._path.open("w")
        os.lseek(self._file.fileno(), LINE, os.SEEK_SET)  # stacks go behind the line that `beat` writes
        self._rank, self._deadline, self._closed = rank, math.inf, threading.Event()
        threading.Thread(target=self._speak_when_late, name="watchdog", daemon=True).start()

    def beat(self, what: str) -> None:
        """Say that this rank goes on, and with what."""
        self._last = what
        line = f"{what}; longest wait {self._seconds:g} s"
        os.pwrite(self._file.fileno(), line.encode()[: LINE - 1].ljust(LINE - 1) + b"\n", 0)
        self._deadline = time.monotonic() + self._seconds
        faulthandler.dump_traceback_later(self._seconds + SPOKEN, file=self._file, exit=True)

    def first_step_done(self) -> None:
        """Be less patient from now on, collectives too: the first step is done."""
        if self._seconds != self._later:
            self._seconds = self._later
            # torch has no public name for it; a run that started with a long time-out keeps that one otherwise.
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self._later + LATER))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not fire inside the block: a slow disk is no stall."""
        self._deadline = math.inf
        faulthandler.cancel_dump_traceback_later()
        yield
        self.beat(self._last)

    def close(self) -> None:
        """Stop, and remove the file, which only a run that died needs."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)
        with suppress(OSError):  # another rank's file is still there
            self._path.parent.rmdir()

    def _speak_when_late(self) -> None:
        """Wait for the deadline, which `beat` moves on; say on stderr that it has passed. Runs in a thread of its own."""
        while not self._closed.wait(min(max(self._deadline - time.monotonic(), 0.0), 1.0)):
            if time.monotonic() >= self._deadline:
                warn(
                    f"rank {self._rank}: stalled: no progress for {self._seconds:g} s at {self._last}. The run ends; "
                    f"{self._path} shows where each thread stood, and {self._path.parent}/ the other ranks. Starting again goes "
                    "on from the last checkpoint"
                )
                return
