"""Processes that share work: what ends them is told in the user's words."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any

from m3p.errors import UserError


@contextmanager
def process_pool(
    processes: int, context: BaseContext, initializer: Callable[..., None], initargs: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of `processes`. Raises UserError where the system refuses it, and where one of them is killed."""
    try:
        pool = ProcessPoolExecutor(processes, context, initializer, initargs)
    except OSError as error:
        raise UserError(no_semaphore(error)) from None
    try:
        with pool:
            yield pool
    except BrokenProcessPool:
        raise UserError(
            "one of the processes at work was killed, for want of memory as a rule: the same command goes on with what is left; "
            "give it more memory, or fewer cores (taskset -c 0)"
        ) from None


def no_semaphore(error: OSError) -> str:
    """Return what to say where no lock between processes can be made, which the system's own words do not place."""
    return (
        f"{error.strerror} in /dev/shm, where the system keeps the locks between processes: free some there (ls -l /dev/shm), "
        "or give a container more of it (docker run --shm-size=1g)"
    )
