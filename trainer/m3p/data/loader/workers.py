"""Worker processes that each compute every n-th micro-batch, and hand them over in order.

Who computes which is known beforehand, so there is no queue of work and no thread: a pipe a worker, read in turn. For
micro-batches of text, torch's DataLoader costs a third as much as loading them.
"""

import atexit
import fcntl
import multiprocessing
import os
import pickle
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Semaphore
from typing import Any, Generic, TypeVar

from m3p.data.loader.die_with_parent import end_with
from m3p.errors import OneRankError, UserError
from m3p.process_pool import no_semaphore

PIPE_BYTES = 2**20
"""Room that a pipe is asked for, so that a worker need not wait until its last micro-batch was taken."""
F_SETPIPE_SZ = 1031
Result = TypeVar("Result")

_living: "weakref.WeakSet[Workers[Any]]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End what is left before multiprocessing waits for it: workers do not heed SIGTERM, which is for the trainer."""
    for workers in list(_living):
        workers.close()


@dataclass(frozen=True)
class Failure:
    """What a worker hands over instead of a result."""

    message: str
    users: bool
    """Whether the user can mend it; otherwise the message is the traceback."""


@dataclass(frozen=True)
class _Worker:
    process: ForkProcess
    connection: Connection
    free: Semaphore
    """Results that it may hand over before one is taken."""


class Workers(Generic[Result]):
    """Computes `make(number)` for the numbers of a range.

    Args:
        number: of processes.
        numbers: whose results are wanted.
        ahead: results of each process that may lie ready; it computes one more, and waits with it.
        start: runs in each process before its work, with the number of the process.
        make: what they do.
    """

    def __init__(
        self,
        number: int,
        numbers: range,
        ahead: int,
        start: Callable[[int], None],
        make: Callable[[int], Result],
    ) -> None:
        self._workers: list[_Worker] = []
        self._numbers = numbers
        _living.add(self)
        context = multiprocessing.get_context("fork")
        for worker in range(number):
            mine, its = context.Pipe(duplex=False)
            with suppress(OSError):  # a matter of speed
                fcntl.fcntl(its.fileno(), F_SETPIPE_SZ, PIPE_BYTES)
            try:
                free = context.Semaphore(ahead)
            except OSError as error:
                self.close()
                raise OneRankError(f"data.workers = {number}: {no_semaphore(error)}, or set data.workers=0") from None
            arguments = (worker, numbers[worker::number], its, free, start, make, os.getpid())
            process = context.Process(target=_work, args=arguments, daemon=True, name=f"loader-{worker}")
            process.start()
            # Ours is closed, so that a worker's end is seen, and the next worker does not inherit it.
            its.close()
            self._workers.append(_Worker(process, mine, free))

    def results(self) -> Iterator[Result]:
        """Yield the results in the order of the numbers. Raises OneRankError: a worker met a user's mistake, or has died."""
        try:
            for place in range(len(self._numbers)):
                worker = self._workers[place % len(self._workers)]
                found = self._take(worker)
                if isinstance(found, Failure):
                    raise OneRankError(found.message) if found.users else RuntimeError(found.message)
                yield found
        finally:
            self.close()

    def _take(self, worker: _Worker) -> Result | Failure:
        try:
            content = worker.connection.recv_bytes()
        except EOFError:
            worker.process.join()
            raise OneRankError(
                f"data worker {worker.process.pid} has died (exit code {worker.process.exitcode}; -9: it was killed). Start "
                "again to go on; if the system lacks memory, lower data.workers or data.prefetch"
            ) from None
        worker.free.release()
        found: Result | Failure = pickle.loads(content)  # a worker of ours wrote it, nothing from a shard
        return found

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers = []


def _work(
    worker: int,
    numbers: range,
    connection: Connection,
    free: Semaphore,
    start: Callable[[int], None],
    make: Callable[[int], object],
    parent: int,
) -> None:
    """Compute, send, until all is done or nobody listens."""
    end_with(parent)
    try:
        start(worker)
        for number in numbers:
            content = pickle.dumps(make(number), protocol=5)
            free.acquire()
            connection.send_bytes(content)
    except UserError as error:
        connection.send_bytes(pickle.dumps(Failure(str(error), True)))
    except BrokenPipeError:
        pass  # nobody listens any more
    except Exception:
        connection.send_bytes(pickle.dumps(Failure(f"in a data worker:\n{traceback.format_exc()}", False)))
