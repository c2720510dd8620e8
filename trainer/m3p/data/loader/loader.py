"""The loader: micro-batch number -> packed micro-batch, computed whole by worker processes.

It has no state: worker count and prefetching are a matter of speed, and resuming is starting at another number.
"""

import gc
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field

from m3p.batch import Allocate, Batch, allocate_nothing
from m3p.data.kinds import Kind
from m3p.data.loader.arena import Arena, BufferWriter, PackedBatch
from m3p.data.loader.threads import ahead, set_threads
from m3p.data.loader.workers import Workers
from m3p.data.order.plan import MicroBatch, MicroBatchPlan
from m3p.errors import OneRankError, UserError
from m3p.fields import MUST_STAY
from m3p.paths import PathField

BUFFERS_IN_USE = 4
"""Buffers of a worker for micro-batches that the training process still uses. Without a free buffer, a worker sends copies."""
BLOCK = 32
"""Micro-batches of a run without pictures that a worker makes and sends together: it is woken less often, and reads and
tokenises more at once. With pictures the gain is nothing beside decoding, and a small piece of memory stays in the caches."""


class DataConfig(BaseModel):
    """The recipe's `data` section."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int = Field(1, ge=0, description="Worker processes a rank; 0 loads in threads of the training process.")
    threads: int = Field(
        2, ge=1, description="Threads that decode pictures, of each worker (of the training process, at 0)."
    )
    prefetch: int = Field(
        4, ge=1, description=f"Micro-batches of each worker that lie ready; of text alone, whole blocks of {BLOCK}."
    )
    window: int = Field(
        4, ge=1, le=1_000_000, json_schema_extra=MUST_STAY, description="Shards whose samples are shuffled together."
    )
    cache_folder: PathField | None = Field(
        None, description="Where shards behind URLs are kept, on a disk of the node; shared by its ranks."
    )
    cache_bytes: int = Field(100 * 10**9, ge=1, description="Bytes that the cache may hold; two windows fit in.")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="Share of bad samples above which the run stops.")


class MakesBatches(Protocol):
    """What the loader needs of an objective."""

    kind: ClassVar[Kind]
    """What its samples are."""

    def batches(self, parts: Sequence[MicroBatch], allocate: Allocate) -> Iterator[Batch]:
        """Pack the samples of some of its micro-batches, in order, into memory that `allocate` gives."""


class MicroBatches:
    """One rank's micro-batches by number, in the order of the plan."""

    def __init__(self, plan: MicroBatchPlan, objectives: Mapping[str, MakesBatches]) -> None:
        self._plan, self._objectives = plan, objectives

    @property
    def block(self) -> int:
        """Number of micro-batches that are best made together."""
        pictures = any(objective.kind.has_pictures for objective in self._objectives.values())
        return 1 if pictures else BLOCK

    def make(self, numbers: range, allocate: Allocate = allocate_nothing) -> Iterator[Batch]:
        """Pack the micro-batches of a block, in order, into memory that `allocate` gives.

        Each objective gets all of its micro-batches of the block at once.
        """
        parts = [self._plan.locate(number) for number in numbers]
        owners = [part.turn.objective for part in parts]
        made = {
            name: self._objectives[name].batches([part for part in parts if part.turn.objective == name], allocate)
            for name in dict.fromkeys(owners)
        }
        for owner in owners:
            yield next(made[owner])


def load(
    batches: MicroBatches, first: int, last: int, config: DataConfig, pin: bool, start_worker: Callable[[int], None]
) -> Iterator[Batch]:
    """Yield micro-batches `first` to `last` - 1. `start_worker` runs in each worker before its work (signals).

    Raises OneRankError for what the user can mend, such as a shard without a good sample.
    """
    blocks = _Blocks(range(first, last), batches.block)
    if not config.workers:
        return _one_by_one(ahead(_alone(batches, blocks, config, pin), _ready(config, blocks)))
    found = _by_workers(batches, blocks, config, start_worker)
    return ahead((batch.pin_memory() for batch in found), 2) if pin else found


@dataclass(frozen=True)
class _Blocks:
    """The numbers of all micro-batches, cut into blocks of `size`; the last block may be shorter."""

    numbers: range
    size: int

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.size)

    def __getitem__(self, block: int) -> range:
        return self.numbers[block * self.size : (block + 1) * self.size]


def _one_by_one(blocks: Iterator[list[Batch]]) -> Iterator[Batch]:
    for block in blocks:
        yield from block


def _ready(config: DataConfig, blocks: _Blocks) -> int:
    """Return how many finished blocks each worker keeps ready."""
    return max(1, config.prefetch // blocks.size)


def _arena(workers: int, config: DataConfig, blocks: _Blocks) -> Arena:
    """Make the buffers: for each worker the blocks that lie ready, one being made, one being taken, and BUFFERS_IN_USE."""
    return Arena(workers, (_ready(config, blocks) + 2) * blocks.size + BUFFERS_IN_USE)


def _alone(batches: MicroBatches, blocks: _Blocks, config: DataConfig, pin: bool) -> Generator[list[Batch], None, None]:
    """Load in this process and in the thread that iterates; threads of their own help it to decode pictures."""
    set_threads(config.threads)
    writer = BufferWriter(_arena(1, config, blocks), 0)
    try:
        for block in range(len(blocks)):
            made = [writer.pack(batch).open() for batch in batches.make(blocks[block], writer.allocate)]
            yield [batch.pin_memory() for batch in made] if pin else made
    except UserError as error:
        raise OneRankError(str(error)) from error


def _by_workers(
    batches: MicroBatches, blocks: _Blocks, config: DataConfig, start_worker: Callable[[int], None]
) -> Generator[Batch, None, None]:
    """Load in worker processes, which pack into memory that they share with this process."""
    arena = _arena(config.workers, config, blocks)
    writers = [BufferWriter(arena, worker) for worker in range(config.workers)]
    task = _WorkerTask(batches, blocks, writers, config.threads, start_worker)
    workers: Workers[list[PackedBatch]] = Workers(
        config.workers, range(len(blocks)), _ready(config, blocks), task.start, task.make
    )
    for block in workers.results():
        for packed in block:
            yield packed.open()


class _WorkerTask:
    """What a worker process does: `start` once, then `make` for each of its blocks."""

    def __init__(
        self,
        batches: MicroBatches,
        blocks: _Blocks,
        writers: list[BufferWriter],
        threads: int,
        start_worker: Callable[[int], None],
    ) -> None:
        self._batches, self._blocks, self._writers = batches, blocks, writers
        self._threads, self._start_worker = threads, start_worker
        self._writer = writers[0]

    def start(self, worker: int) -> None:
        """Prepare the process: torch without threads (workers are the parallelism), threads that decode, buffers to write to."""
        torch.set_num_threads(1)
        gc.freeze()  # what was there before is no garbage; to look through it again and again takes time
        gc.enable()  # the training process, of which this is a copy, collects at fixed steps alone
        set_threads(self._threads)
        self._writer = self._writers[worker]
        self._start_worker(worker)

    def make(self, block: int) -> list[PackedBatch]:
        writer = self._writer
        return [writer.pack(batch) for batch in self._batches.make(self._blocks[block], writer.allocate)]
