"""Threads that share the work on a micro-batch's pictures: decoders release Python's lock, so threads decode side by side."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache


class _Own(threading.local):
    threads = 1


_own = _Own()


def set_threads(number: int) -> None:
    """Share the work of this thread among so many, itself counted, from now on."""
    _own.threads = number


def share(work: Callable[[range], None], count: int) -> None:
    """Do `work` on 0, 1, ... `count` - 1, each thread on a part of its own; return when all is done.

    `work` writes its results to their places, so that nothing depends on which thread did what. The first exception of
    a part is raised.
    """
    threads = _own.threads
    if threads == 1 or count < 2:
        work(range(count))
        return
    pool = _pool(os.getpid(), threads)
    parts = [pool.submit(work, range(count)[number::threads]) for number in range(1, threads)]
    try:
        work(range(count)[::threads])
    finally:
        for part in parts:
            part.exception()  # waits, so that no thread writes on behind our back
    for part in parts:
        part.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the threads of this process; a forked worker does not have those of its parent."""
    return ThreadPoolExecutor(threads - 1, "decode")
