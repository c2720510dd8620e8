"""Threads of one process: some that share a micro-batch's pictures (decoders release Python's lock), one that works ahead."""

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


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


_living: "weakref.WeakSet[_Ahead[Any]]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Let no thread run into the end of the process: one that comes back from torch's code then takes the process down."""
    for one in list(_living):
        one.end()


@dataclass(frozen=True)
class _End:
    error: BaseException | None


class _Ahead(Generic[Item]):
    def __init__(self, items: Generator[Item, None, None], number: int) -> None:
        self._items = items
        self._ready: queue.Queue[Item | _End] = queue.Queue(number)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="ahead")

    def take(self) -> Iterator[Item]:
        _living.add(self)
        self._thread.start()
        try:
            while not isinstance(found := self._ready.get(), _End):
                yield found
            if found.error is not None:
                raise found.error
        finally:
            self.end()

    def end(self) -> None:
        """Have the thread end, and wait for it."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                self._put(item)
                if self._stop.is_set():
                    break
            self._items.close()
        except BaseException as found:  # whatever it is, it is for the thread that waits
            error = found
        self._put(_End(error))

    def _put(self, item: Item | _End) -> None:
        """Put it there once there is room; give up when nobody takes any more."""
        while not self._stop.is_set():
            with suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return


def ahead(items: Generator[Item, None, None], number: int) -> Iterator[Item]:
    """Yield `items`, of which a thread of their own makes up to `number` before they are asked for."""
    return _Ahead(items, number).take()
