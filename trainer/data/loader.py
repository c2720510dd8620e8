"""The loader: micro-batch number -> packed micro-batch, computed whole by worker processes.

It has no state: worker count and prefetching are a matter of speed, and resuming is starting at another number.
"""

import gc
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field

from trainer.batch import Batch, set_room
from trainer.data.arena import Arena, Desk, Parcel
from trainer.data.plan import MicroBatch, MicroBatchPlan
from trainer.data.threads import ahead, set_threads
from trainer.data.workers import Workers
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

    def batch(self, turn: range, positions: Sequence[int]) -> Batch:
        """Pack the samples at `positions` of `turn`."""


class MicroBatches:
    """One rank's micro-batches by number, in the order of the plan."""

    def __init__(self, plan: MicroBatchPlan, objectives: Mapping[str, MakesBatches]) -> None:
        self._plan, self._objectives = plan, objectives

    def __getitem__(self, number: int) -> Batch:
        place: MicroBatch = self._plan.locate(number)
        return self._objectives[place.turn.objective].batch(place.turn.positions, place.positions)


def load(
    batches: MicroBatches, first: int, last: int, config: DataConfig, pin: bool, start_worker: Callable[[int], None]
) -> Iterator[Batch]:
    """Yield micro-batches `first` to `last` - 1. `start_worker` runs in each worker before its work (signals).

    Raises OneRankError for what the user can mend, such as a shard without a good sample.
    """
    numbers = range(first, last)
    if not config.workers:
        return ahead(_alone(batches, numbers, config, pin), config.prefetch)
    found = _by_workers(batches, numbers, config, start_worker)
    return ahead((batch.pin_memory() for batch in found), 2) if pin else found


def _alone(batches: MicroBatches, numbers: range, config: DataConfig, pin: bool) -> Generator[Batch, None, None]:
    """Load in this process: all of it in the thread that takes from here, but pictures, which it shares with others."""
    set_threads(config.threads)
    desk = Desk(Arena(1, config.prefetch + HELD), 0)
    set_room(desk.room)
    try:
        for number in numbers:
            batch = desk.pack(batches[number]).open()
            yield batch.pin_memory() if pin else batch
    except UserError as error:
        raise OneRankError(str(error)) from error


def _by_workers(
    batches: MicroBatches, numbers: range, config: DataConfig, start_worker: Callable[[int], None]
) -> Generator[Batch, None, None]:
    """Load in worker processes, which pack their pictures into memory that this process sees."""
    # A worker has so many micro-batches under way, and the training process may hold those of some turns.
    arena = Arena(config.workers, config.prefetch + HELD)
    desks = [Desk(arena, worker) for worker in range(config.workers)]
    mine = _Mine(batches, desks, config.threads, start_worker)
    workers: Workers[Parcel] = Workers(config.workers, numbers, config.prefetch, mine.start, mine.make)
    for parcel in workers.results():
        yield parcel.open()


class _Mine:
    """What a worker does."""

    def __init__(
        self, batches: MicroBatches, desks: list[Desk], threads: int, start_worker: Callable[[int], None]
    ) -> None:
        self._batches, self._desks, self._threads, self._start_worker = batches, desks, threads, start_worker
        self._desk = desks[0]

    def start(self, worker: int) -> None:
        """torch without threads (workers are the parallelism), those that decode, and a place to pack at."""
        torch.set_num_threads(1)
        gc.enable()  # the training process, of which this is a copy, collects at fixed steps alone
        set_threads(self._threads)
        self._desk = self._desks[worker]
        set_room(self._desk.room)
        self._start_worker(worker)

    def make(self, number: int) -> Parcel:
        return self._desk.pack(self._batches[number])
