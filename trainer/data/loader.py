"""The loader: micro-batch number -> packed micro-batch, computed whole by worker processes.

It has no state: worker count and prefetching are a matter of speed, and resuming is starting at another number.
"""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.utils.data import DataLoader, Dataset, get_worker_info

from trainer.batch import Batch, set_room
from trainer.data.arena import Arena, Desk, Parcel
from trainer.data.plan import MicroBatch, MicroBatchPlan
from trainer.errors import OneRankError, UserError

HELD = 4
"""Slots of a worker for micro-batches that the training process still uses; short of slots, it copies."""


class DataConfig(BaseModel):
    """The recipe's `data` section."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int = Field(1, ge=0, description="Worker processes a rank; 0 loads in the training process.")
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
        try:
            place: MicroBatch = self._plan.locate(number)
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
    # A worker has so many micro-batches under way, and the training process may hold those of some turns.
    arena = Arena(config.workers, config.prefetch + HELD) if config.workers else None
    loader: DataLoader[Batch | Parcel | Failure] = DataLoader(
        dataset,
        batch_size=None,
        sampler=Numbers(first, last),
        num_workers=config.workers,
        multiprocessing_context="fork" if config.workers else None,
        prefetch_factor=config.prefetch if config.workers else None,
        pin_memory=pin,
        worker_init_fn=_Start(start_worker, arena),
        # Of its own: the loader draws a seed for its workers, which must not move the generator that dropout uses.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, Failure):
            raise OneRankError(batch.message)
        yield batch.open() if isinstance(batch, Parcel) else batch


class _Start:
    """Worker start: one thread each (workers are the parallelism), a place to pack at, then `start_worker`."""

    def __init__(self, start_worker: Callable[[int], None], arena: Arena | None) -> None:
        self._start_worker, self._arena = start_worker, arena

    def __call__(self, worker: int) -> None:
        torch.set_num_threads(1)
        gc.enable()  # the training process, of which this is a copy, collects at fixed steps alone
        if self._arena:
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
