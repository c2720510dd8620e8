"""Shared memory that workers pack into, used again and again.

torch hands every tensor of a worker over in a fresh piece of shared memory: a system call and a file descriptor a tensor,
and a page fault for every 4 kB on both sides, which for a micro-batch of pictures costs as much as decoding half of it.
Here one mapping, made before the workers are forked, is divided into slots; a slot is free again when the training
process drops the tensors that lie in it. (It is no file, so that the size of /dev/shm does not limit it.)
"""

import errno
import itertools
import math
import mmap
import weakref
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m3p.batch import Batch
from m3p.errors import OneRankError
from m3p.terminal import warn

SLOT = 2**30
"""Bytes of one slot; address space, not memory, until written. What finds no room in it is sent through the pipe, which is
slow: while 160 MB are unpickled, 120 ms, no other thread of the training process runs."""
LEAST_SLOT = 2**26
"""Below, a limit of address space (`ulimit -v`, vm.overcommit_memory = 2) leaves no room to work in."""
LINE = 64
"""Tensors begin so many bytes apart."""
OFF = 16
"""And so many behind a multiple of `LINE`. At a multiple of 32, libjpeg-turbo (AVX2) writes past the caches, straight to
memory: decoding takes 5 to 8 % longer."""
MAP_NORESERVE = 0x4000
_arenas: "weakref.WeakValueDictionary[int, Arena]" = weakref.WeakValueDictionary()
_numbers = itertools.count()


class Arena:
    """Slots for `workers`, each with `slots` of its own, so that a slot has one writer and one reader.

    Raises OneRankError where this process may not have so much address space.
    """

    def __init__(self, workers: int, slots: int) -> None:
        self.number, self._slots = next(_numbers), slots
        self.memory, self.slot = _reserve(workers * slots + 1)
        self._used = memoryview(self.memory)[workers * slots * self.slot :][: workers * slots]
        _arenas[self.number] = self

    def take(self, worker: int) -> int | None:
        """Return a free slot of `worker`, taken from now on; None where there is none."""
        first = worker * self._slots
        free = bytes(self._used[first : first + self._slots]).find(0)
        if free < 0:
            return None
        self._used[first + free] = 1
        return first + free

    def borrow(self, number: int) -> NDArray[np.uint8]:
        """Return a slot, uint8 [slot], that is free again when this array, and all that lie in it, are gone."""
        found = np.frombuffer(self.memory, np.uint8, self.slot, number * self.slot)
        weakref.finalize(found, self.free, number)
        return found

    def free(self, slot: int) -> None:
        """Let a slot be taken again."""
        self._used[slot] = 0


def _reserve(slots: int) -> tuple[mmap.mmap, int]:
    """Map memory for `slots`: -> it, and the bytes of a slot, fewer than `SLOT` where the system does not give as many."""
    size = SLOT
    while (memory := _map(slots * size)) is None:
        if size <= LEAST_SLOT:
            raise OneRankError(
                f"data.workers, data.prefetch: {slots} slots of {size // 2**20} MiB do not fit into the address space that this "
                "process may have (ulimit -v, vm.overcommit_memory): lower them"
            )
        size //= 2
    if size < SLOT:
        warn(
            f"address space is short (ulimit -v, vm.overcommit_memory): micro-batches of more than {size // 2**20} MiB take the "
            "slow way between loader and training"
        )
    return memory, size


def _map(size: int) -> mmap.mmap | None:
    """Return so much memory, or None where the system does not give it."""
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OverflowError:
        return None
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        return None


class Desk:
    """Where a worker packs: one slot for each micro-batch, which holds all its tensors, one behind the other."""

    def __init__(self, arena: Arena, worker: int) -> None:
        self._arena, self._worker = arena, worker
        self._slot: int | None = None
        """Of the micro-batch under way."""
        self._end = 0
        """Bytes of it that are given out."""
        self._rooms: list[tuple[torch.Tensor, int]] = []
        """Tensors that lie in it, and where."""

    def room(self, shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor | None:
        """Return a tensor in the slot, or None where there is no slot free, or no room left in it."""
        place = self._take(math.prod(shape) * kind.itemsize)
        if place is None:
            return None
        room = torch.from_numpy(self._array(shape, _name(kind), place))
        self._rooms.append((room, place))
        return room

    def pack(self, batch: Batch) -> "Parcel":
        """Make a batch ready to be sent: what does not lie in the slot goes there, or, without room, with the parcel."""
        stored = batch.map(self._store)
        slot, self._slot, self._rooms = self._slot, None, []
        return Parcel(stored, self._arena.number, slot)

    def _take(self, size: int) -> int | None:
        """Return where in the slot so many bytes are free, taken from now on; None where they are not."""
        if self._slot is None:
            self._slot, self._end = self._arena.take(self._worker), OFF
        if self._slot is None or self._end + size > self._arena.slot:
            return None
        place = self._end
        self._end += -(-size // LINE) * LINE
        return place

    def _array(self, shape: tuple[int, ...], kind: str, place: int) -> NDArray[Any]:
        assert self._slot is not None, "a place lies in a slot"
        return np.ndarray(shape, kind, self._arena.memory, self._slot * self._arena.slot + place)

    def _store(self, tensor: torch.Tensor) -> "Stored | NDArray[Any]":
        array = tensor.numpy()
        shape, kind = array.shape, array.dtype.str
        for room, place in self._rooms:
            if room.data_ptr() == tensor.data_ptr():  # it, or what of it is used
                return place, shape, kind
        free = self._take(array.nbytes)
        if free is None:
            return array
        self._array(shape, kind, free)[...] = array
        return free, shape, kind


@cache
def _name(kind: torch.dtype) -> str:
    """Return numpy's name of a kind of number."""
    return str(kind).removeprefix("torch.")


Stored = tuple[int, tuple[int, ...], str]
"""Where in its slot a tensor begins, its shape and its kind."""


class Parcel:
    """A batch on its way between processes: notes where in the arena its tensors lie, plain arrays for those that do not."""

    def __init__(self, stored: Batch, arena: int, slot: int | None) -> None:
        self._stored, self._arena, self._slot = stored, arena, slot

    def open(self) -> Batch:
        """Return the batch. Its slot is free again when the last of its tensors is gone."""
        slot = None if self._slot is None else _arenas[self._arena].borrow(self._slot)

        def load(stored: "Stored | NDArray[Any]") -> torch.Tensor:
            if isinstance(stored, np.ndarray):
                return torch.from_numpy(stored)
            place, shape, kind = stored
            return torch.from_numpy(np.ndarray(shape, kind, slot, place))

        return self._stored.map(load)
