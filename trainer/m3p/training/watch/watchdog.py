"""Ends a run that has stalled, and says where: stacks/rank-00000.txt of every rank holds its last turn and its stacks.

The clock is faulthandler's own thread, which needs no Python to run: it fires while a rank waits inside a collective,
inside a GPU call, or for its loader. Ranks move in step, so when one stalls they all fire at about the same time.
"""

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

LINE = 160
"""Bytes kept in front of the stacks for the last turn."""
LATER = 60.0
"""Seconds by which collectives time out after the watchdog has written its stacks."""


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

    def beat(self, what: str) -> None:
        """Say that this rank goes on, and with what."""
        self._last = what
        line = f"{what}; longest wait {self._seconds:g} s"
        os.pwrite(self._file.fileno(), line.encode()[: LINE - 1].ljust(LINE - 1) + b"\n", 0)
        faulthandler.dump_traceback_later(self._seconds, file=self._file, exit=True)

    def first_step_done(self) -> None:
        """Be less patient from now on, collectives too: the first step is done."""
        if self._seconds != self._later:
            self._seconds = self._later
            # torch has no public name for it; a run that started with a long time-out keeps that one otherwise.
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self._later + LATER))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not fire inside the block: a slow disk is no stall."""
        faulthandler.cancel_dump_traceback_later()
        yield
        self.beat(self._last)

    def close(self) -> None:
        """Stop, and remove the file, which only a run that died needs."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)
        with suppress(OSError):  # another rank's file is still there
            self._path.parent.rmdir()
