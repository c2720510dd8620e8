"""Shared memory that workers write their pictures into, used again and again.

torch hands every tensor of a worker over in a fresh piece of shared memory: a system call and a file descriptor a tensor,
and a page fault for every 4 kB on both sides, which for a micro-batch of pictures costs as much as decoding half of it.
Here one mapping, made before the workers are forked, is divided into slots; a slot is free again when the training
process drops the tensor that lies in it. (It is no file, so that the size of /dev/shm does not limit it.)
"""

import itertools
import mmap
import weakref
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.batch import Batch

SLOT = 128 * 2**20
"""Bytes of one slot; address space, not memory, until written. A larger batch goes torch's way."""
MAP_NORESERVE = 0x4000
_arenas: "weakref.WeakValueDictionary[int, Arena]" = weakref.WeakValueDictionary()
_numbers = itertools.count()


class Arena:
    """Slots for `workers`, each with `slots` of its own, so that a slot has one writer and one reader."""

    def __init__(self, workers: int, slots: int) -> None:
        self.number, self._slots = next(_numbers), slots
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self._memory = mmap.mmap(-1, (workers * slots + 1) * SLOT, flags=flags)
        self._used = np.frombuffer(self._memory, np.uint8, workers * slots, workers * slots * SLOT)
        _arenas[self.number] = self

    def take(self, worker: int, size: int) -> int | None:
        """Return a free slot of `worker` for `size` bytes, taken from now on; None where there is none."""
        mine = self._used[worker * self._slots : (worker + 1) * self._slots]
        if size > SLOT or mine.all():
            return None
        slot = worker * self._slots + int(mine.argmin())
        self._used[slot] = 1
        return slot

    def array(self, slot: int, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
        """Return what lies in a slot."""
        count = int(np.prod(shape))
        return np.frombuffer(self._memory, kind, count, slot * SLOT).reshape(shape)

    def borrow(self, slot: int, shape: tuple[int, ...], kind: str) -> torch.Tensor:
        """Return what lies in a slot as a tensor; the slot is free again when the tensor is gone."""
        array = np.frombuffer(self._memory, kind, int(np.prod(shape)), slot * SLOT)
        weakref.finalize(array, self.free, slot)
        return torch.from_numpy(array).view(shape)

    def free(self, slot: int) -> None:
        """Let a slot be taken again."""
        self._used[slot] = 0


class Desk:
    """Where a worker packs: gives out room in the arena, and remembers the slots given out for the micro-batch under way."""

    def __init__(self, arena: Arena, worker: int) -> None:
        self._arena, self._worker = arena, worker
        self._taken: list[tuple[torch.Tensor, int]] = []

    def room(self, shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor | None:
        """Return a tensor in a free slot, or None where there is none."""
        size = int(np.prod(shape)) * kind.itemsize
        slot = self._arena.take(self._worker, size) if size else None
        if slot is None:
            return None
        name = str(kind).removeprefix("torch.")
        tensor = torch.from_numpy(self._arena.array(slot, shape, name))
        self._taken.append((tensor, slot))
        return tensor

    def pack(self, batch: Batch) -> "Parcel":
        """Make a batch ready to be sent; slots that its pictures do not lie in are free again."""
        used = None
        for tensor, slot in self._taken:
            if tensor is batch.visual_features:
                used = slot
            else:
                self._arena.free(slot)
        self._taken = []
        return Parcel(batch, self._arena.number, used)


class Parcel:
    """A batch on its way between processes: plain arrays, but for the pictures, which lie in the arena."""

    def __init__(self, batch: Batch, arena: int, slot: int | None) -> None:
        features = batch.visual_features
        self._arena = arena
        self._visual = (
            None if slot is None else (slot, tuple(features.shape), str(features.dtype).removeprefix("torch."))
        )
        tensors = {
            f.name: getattr(batch, f.name) for f in fields(batch) if isinstance(getattr(batch, f.name), torch.Tensor)
        }
        if self._visual:
            del tensors["visual_features"]
        self._arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        self._targets = {task: {n: t.numpy() for n, t in of.items()} for task, of in batch.targets.items()}
        self._rest = replace(batch, targets={}, **dict.fromkeys([*tensors, "visual_features"]))  # type: ignore[arg-type]

    def open(self) -> Batch:
        """Return the batch."""
        tensors = {name: torch.from_numpy(array) for name, array in self._arrays.items()}
        if self._visual:
            tensors["visual_features"] = _arenas[self._arena].borrow(*self._visual)
        targets = {task: {n: torch.from_numpy(a) for n, a in of.items()} for task, of in self._targets.items()}
        return replace(self._rest, targets=targets, **tensors)  # type: ignore[arg-type]

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory."""
        return self.open().pin_memory()
