"""A lock between processes, for a folder that only one of them may write.

Where the file system has `flock`, that is the lock: the system lets go of it when a process is killed. Lustre mounted
without it, and some NFS, refuse `flock`. There the lock is a file made with O_EXCL beside the one to be locked. It names its
holder, so that on the same machine a lock left behind by a killed process is found and taken over.
"""

import errno
import fcntl
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ValidationError

from m3p.terminal import warn

NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What `flock` fails with on a file system that does not have it."""
PAUSE = 0.02
"""Seconds between two attempts."""
LONG = 10.0
"""Seconds of waiting for a lock file after which its holder is named."""

Release = Callable[[], None]


class Holder(BaseModel):
    """Who holds a lock: what its lock file says, as JSON."""

    machine: str
    """The host, its start, and the container on it: what process numbers belong to."""
    pid: int
    """Number of the process."""
    started: str
    """When the process started; another process that gets the same number later has another time."""


@contextmanager
def hold(path: Path, patience: float = math.inf) -> Iterator[bool]:
    """Hold the lock `path`; gives whether it could be had within `patience` seconds (0: one attempt).

    `path` is made if it is not there, and stays. Its holder may delete it; who waits then takes a new one. Threads of one
    process exclude each other too. Raises OSError where `path` cannot be opened for writing.
    """
    start, told = time.monotonic(), False
    while (release := _attempt(path, blocking=patience == math.inf)) is None:
        waited = time.monotonic() - start
        if not told and waited >= min(patience, LONG):
            told = True
            _name_holder(lock_file(path))
        if waited >= patience:
            break
        time.sleep(PAUSE)
    try:
        yield release is not None
    finally:
        if release is not None:
            release()


def lock_file(path: Path) -> Path:
    """Return the file that stands for the lock `path` where there is no `flock`."""
    return path.with_name(f"{path.name}.lock")


def _attempt(path: Path, blocking: bool) -> Release | None:
    """Take the lock and return what lets go of it; None if another holds it, or has just deleted the file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        if error.errno not in NO_FLOCK:
            raise
        _say_no_flock(path.parent, os.strerror(error.errno))
        release_file = _make_lock_file(lock_file(path))
        if release_file is not None:
            path.touch(0o666)  # the last holder may have deleted it since it was opened above
        return release_file

    def release() -> None:
        # Closing is not enough: a child process forked meanwhile has the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    if os.fstat(descriptor).st_nlink == 0:
        release()
        return None
    return release


def this_process() -> Holder:
    """Return what names this process."""
    return Holder(machine=_machine(), pid=os.getpid(), started=_started(os.getpid()) or "")


def runs_here(holder: Holder) -> bool:
    """Whether `holder` is a process of this machine that has not ended; of another machine's nothing can be said: False."""
    return holder.machine == _machine() and holder.started == _started(holder.pid)


def _make_lock_file(file: Path) -> Release | None:
    """Make the lock file, or take over one that a killed process of this machine has left; None if it is held."""
    me = this_process().model_dump_json()
    if _create(file, me) or (_abandoned(file) and _take_over(file, me)):
        return lambda: file.unlink(missing_ok=True)
    return None


def _create(file: Path, text: str) -> bool:
    """Make `file` with `text`; False if it is there already."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(text)
    return True


def _take_over(file: Path, text: str) -> bool:
    """Put this process' name into an abandoned lock file; one process at a time, so that only one of several gets it."""
    turn = file.with_name(f"{file.name}.takeover")
    if not _create(turn, text):
        return False
    # The file with the new name replaces the old one in one step, so that nobody finds the lock free in between.
    if mine := _abandoned(file):
        os.replace(turn, file)
    else:
        turn.unlink()
    return mine


def _abandoned(file: Path) -> bool:
    """Whether the holder named in `file` was a process of this machine that has ended."""
    holder = _holder(file)
    return holder is not None and holder.machine == _machine() and holder.started != _started(holder.pid)


def _holder(file: Path) -> Holder | None:
    """Return what a lock file says; None if it is gone, or its holder has not written it yet."""
    with suppress(FileNotFoundError, ValidationError):
        return Holder.model_validate_json(file.read_bytes())
    return None


def _started(pid: int) -> str | None:
    """Return when process `pid` of this machine started, in clock ticks since boot; None if it has ended (`man proc`)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else fields[19]


@lru_cache(maxsize=1)
def _machine() -> str:
    """Name this host, its start, and the container on it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def _name_holder(file: Path) -> None:
    if holder := _holder(file):
        warn(f"{file}: held by process {holder.pid} on {holder.machine.split()[0]}; if that has ended, delete the file")


@lru_cache
def _say_no_flock(folder: Path, why: str) -> None:
    """Say once a folder that its file system has no `flock`."""
    warn(
        f"{folder}: the file system has no flock ({why}); going on with a lock file, which a process killed on another "
        "machine leaves behind"
    )
