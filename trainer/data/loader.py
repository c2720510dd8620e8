"""The loader: micro-batch number -> packed micro-batch, computed whole by worker processes.

It has no state: worker count and prefetching are a matter of speed, and resuming is starting at another number.
"""

import ctypes
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.utils.data import DataLoader, Dataset, get_worker_info

from trainer.batch import Batch, set_room
from trainer.data.arena import Arena, Desk, Parcel
from trainer.data.plan import MicroBatch, MicroBatchPlan
from trainer.data.threads import set_threads
from trainer.errors import OneRankError, UserError

HELD = 4
"""Slots of a worker for micro-batches that the training process still uses; short of slots, it copies."""


class DataConfig(BaseModel):
    """The recipe's `data` section."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int = Field(1, ge=0, description="Worker processes a rank; 0 loads in threads of the training process.")
    threads: int = Field(
        2, ge=1, description="Threads that decode pictures, of each worker (of the training process, at 0)."
    )
    prefetch: int = Field(4, ge=1, description="Micro-batches that each worker prepares ahead.")
    window: int = Field(4, ge=1, description="Shards whose samples are shuffled together.")
    cache_folder: Path | None = Field(
        None, description="Where shards behind URLs are kept, on a disk of the node; shared by its ranks."
    )
    cache_bytes: int = Field(100 * 10**9, ge=1, description="Bytes that the cache may hold; two windows fit in.")
    most_bad: float = Field(0.01, ge=0, le=1, description="Share of bad samples above which the run stops.")


class MakesBatches(Protocol):
    """An objective, as far as the loader cares."""

    def batch(self, turn: range, positions: range) -> Batch:
        """Pack the samples at `positions` of `turn`."""


@dataclass(frozen=True)
class Failure:
    """What a worker hands over instead of a batch; an exception would arrive with the worker's traceback as its text."""

    message: str


class MicroBatches(Dataset[Batch | Parcel | Failure]):
    """Map-style dataset of one rank's micro-batches, in the order of the plan."""

    def __init__(self, plan: MicroBatchPlan, objectives: Mapping[str, MakesBatches]) -> None:
        self._plan, self._objectives = plan, objectives
        self.desk: Desk | None = None
        """Set in a worker: where it packs."""

    def __getitem__(self, number: int) -> Batch | Parcel | Failure:
        place: MicroBatch = self._plan.locate(number)
        try:
            batch = self._objectives[place.turn.objective].batch(place.turn.positions, place.positions)
        except UserError as error:
            return Failure(str(error))
        return self.desk.pack(batch) if self.desk else batch


class Numbers:
    """Sampler: the numbers first, first + 1, ... last - 1."""

    def __init__(self, first: int, last: int) -> None:
        self._numbers = range(first, last)

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def load(
    dataset: MicroBatches, first: int, last: int, config: DataConfig, pin: bool, start_worker: Callable[[int], None]
) -> Iterator[Batch]:
    """Yield micro-batches `first` to `last` - 1. `start_worker` runs in each worker before its work (signals).

    Raises OneRankError for what the user can mend, such as a shard without a good sample.
    """
    if not config.workers:
        yield from _in_threads(dataset, range(first, last), config, pin)
        return
    # A worker has so many micro-batches under way, and the training process may hold those of some turns.
    arena = Arena(config.workers, config.prefetch + HELD)
    loader: DataLoader[Batch | Parcel | Failure] = DataLoader(
        dataset,
        batch_size=None,
        sampler=Numbers(first, last),
        num_workers=config.workers,
        multiprocessing_context="fork",
        prefetch_factor=config.prefetch,
        pin_memory=pin,
        worker_init_fn=_Start(start_worker, arena, config.threads),
        # Of its own: the loader draws a seed for its workers, which must not move the generator that dropout uses.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, Failure):
            raise OneRankError(batch.message)
        yield batch.open() if isinstance(batch, Parcel) else batch


def _in_threads(dataset: MicroBatches, numbers: range, config: DataConfig, pin: bool) -> Iterator[Batch]:
    """Load ahead in a thread of this process, its pictures decoded by `config.threads`."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(config.prefetch)
    stop = threading.Event()
    loading = threading.Thread(target=_fill, args=(ready, stop, dataset, numbers, config, pin), daemon=True)
    loading.start()
    try:
        while (found := ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        stop.set()
        loading.join()


def _fill(
    ready: "queue.Queue[Batch | BaseException | None]",
    stop: threading.Event,
    dataset: MicroBatches,
    numbers: range,
    config: DataConfig,
    pin: bool,
) -> None:
    """Put the micro-batches `numbers` into `ready`, then None; or what went wrong."""
    set_threads(config.threads)
    dataset.desk = Desk(Arena(1, config.prefetch + HELD), 0)
    set_room(dataset.desk.room)
    try:
        for number in numbers:
            found = dataset[number]
            if isinstance(found, Failure):
                raise OneRankError(found.message)
            assert isinstance(found, Parcel), "it has a desk"
            _put(ready, stop, found.pin_memory() if pin else found.open())
            if stop.is_set():
                return
        _put(ready, stop, None)
    except BaseException as error:  # whatever it is, it is for the thread that waits for the batch
        _put(ready, stop, error)


def _put(
    ready: "queue.Queue[Batch | BaseException | None]", stop: threading.Event, found: Batch | BaseException | None
) -> None:
    """Put it there once there is room; give up where nobody takes any more."""
    while not stop.is_set():
        with suppress(queue.Full):
            ready.put(found, timeout=0.1)
            return


class _Start:
    """Worker start: torch without threads (workers are the parallelism), a place to pack at, then `start_worker`."""

    def __init__(self, start_worker: Callable[[int], None], arena: Arena, threads: int) -> None:
        self._start_worker, self._arena, self._threads = start_worker, arena, threads

    def __call__(self, worker: int) -> None:
        torch.set_num_threads(1)
        set_threads(self._threads)
        desk = Desk(self._arena, worker)
        information = get_worker_info()
        assert information is not None
        dataset = information.dataset
        assert isinstance(dataset, MicroBatches)
        dataset.desk = desk
        set_room(desk.room)
        _end_with_parent()
        self._start_worker(worker)


PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Have the system kill this worker when the training process goes, even by kill -9 and even in the middle of a read."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:  # it went before we asked
            os._exit(1)
