"""Shared memory that workers pack into, used again and again.

torch hands every tensor of a worker over in a fresh piece of shared memory: a system call and a file descriptor a tensor,
and a page fault for every 4 kB on both sides, which for a micro-batch of pictures costs as much as decoding half of it.
Here one mapping, made before the workers are forked, is divided into buffers; a buffer is free again when the training
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

BUFFER_BYTES = 2**30
"""Bytes of one buffer; address space, not memory, until written. What does not fit into one is sent through the pipe, which is
slow: while 160 MB are unpickled, 120 ms, no other thread of the training process runs."""
SMALLEST_BUFFER = 2**26
"""Bytes of the smallest useful buffer. Where a limit of address space (`ulimit -v`, vm.overcommit_memory = 2) allows less, the
loader refuses to start."""
TENSOR_ALIGNMENT = 64
"""Bytes: the start of each tensor in a buffer is TENSOR_ALIGNMENT_OFFSET more than a multiple of this."""
TENSOR_ALIGNMENT_OFFSET = 16
"""Bytes that each tensor in a buffer lies behind a multiple of TENSOR_ALIGNMENT. At a multiple of 32, libjpeg-turbo (AVX2) writes
straight to memory, past the caches, and decoding takes 5 to 8 % longer."""
MAP_NORESERVE = 0x4000
"""Linux's mmap flag (mman.h): no swap space is reserved for the mapping. Python's `mmap` does not name it."""
_arenas: "weakref.WeakValueDictionary[int, Arena]" = weakref.WeakValueDictionary()
_numbers = itertools.count()


class Arena:
    """Shared memory in buffers: `buffers` for each of `workers`, so that a buffer has one writer and one reader.

    Raises OneRankError where this process may not have so much address space.
    """

    def __init__(self, workers: int, buffers: int) -> None:
        self.number, self._buffers = next(_numbers), buffers
        self.memory, self.buffer = _reserve(workers * buffers + 1)
        self._used = memoryview(self.memory)[workers * buffers * self.buffer :][: workers * buffers]
        _arenas[self.number] = self

    def take(self, worker: int) -> int | None:
        """Return the number of a free buffer of `worker` and mark it as used; None if all are in use."""
        first = worker * self._buffers
        free = bytes(self._used[first : first + self._buffers]).find(0)
        if free < 0:
            return None
        self._used[first + free] = 1
        return first + free

    def borrow(self, number: int) -> NDArray[np.uint8]:
        """Return buffer `number` as bytes, uint8 [buffer]. It is free again when this array, and all views of it, are gone."""
        found = np.frombuffer(self.memory, np.uint8, self.buffer, number * self.buffer)
        weakref.finalize(found, self.free, number)
        return found

    def free(self, buffer: int) -> None:
        """Mark a buffer as free, so that `take` may return it again."""
        self._used[buffer] = 0


def _reserve(buffers: int) -> tuple[mmap.mmap, int]:
    """Map memory for so many buffers; return it and the bytes of one: `BUFFER_BYTES`, or fewer where the system gives less."""
    size = BUFFER_BYTES
    while (memory := _map(buffers * size)) is None:
        if size <= SMALLEST_BUFFER:
            raise OneRankError(
                f"data.workers, data.prefetch: {buffers} buffers of {size // 2**20} MiB do not fit into the address space that "
                "this process may have (ulimit -v, vm.overcommit_memory): lower them"
            )
        size //= 2
    if size < BUFFER_BYTES:
        warn(
            f"address space is short (ulimit -v, vm.overcommit_memory): micro-batches of more than {size // 2**20} MiB take the "
            "slow way between loader and training"
        )
    return memory, size


def _map(size: int) -> mmap.mmap | None:
    """Return `size` bytes of shared memory, or None where the system does not give them."""
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OverflowError:
        return None
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        return None


class BufferWriter:
    """Writes the micro-batches of one worker into its buffers: one buffer a micro-batch, its tensors one behind the other."""

    def __init__(self, arena: Arena, worker: int) -> None:
        self._arena, self._worker = arena, worker
        self._buffer: int | None = None
        """Number of the buffer of the current micro-batch; None before its first tensor, and where no buffer was free."""
        self._end = 0
        """Byte of the current buffer at which the next tensor begins."""
        self._allocated: list[tuple[torch.Tensor, int]] = []
        """Tensors that `allocate` returned from the current buffer, and the byte at which each begins."""

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        """Return an uninitialised tensor in the current buffer; None if no buffer is free, or the tensor does not fit."""
        start = self._take(math.prod(shape) * dtype.itemsize)
        if start is None:
            return None
        tensor = torch.from_numpy(self._array(shape, _numpy_name(dtype), start))
        self._allocated.append((tensor, start))
        return tensor

    def pack(self, batch: Batch) -> "PackedBatch":
        """End the current micro-batch: copy what does not yet lie in its buffer there, and return what is sent in its place.

        What does not fit into the buffer is sent as plain arrays.
        """
        stored = batch.map(self._store)
        buffer, self._buffer, self._allocated = self._buffer, None, []
        return PackedBatch(stored, self._arena.number, buffer)

    def _take(self, size: int) -> int | None:
        """Reserve `size` bytes of the current buffer and return the first; None if no buffer is free, or they do not fit."""
        if self._buffer is None:
            self._buffer, self._end = self._arena.take(self._worker), TENSOR_ALIGNMENT_OFFSET
        if self._buffer is None or self._end + size > self._arena.buffer:
            return None
        start = self._end
        self._end += -(-size // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
        return start

    def _array(self, shape: tuple[int, ...], dtype: str, start: int) -> NDArray[Any]:
        assert self._buffer is not None, "`_take` has reserved bytes of a buffer"
        return np.ndarray(shape, dtype, self._arena.memory, self._buffer * self._arena.buffer + start)

    def _store(self, tensor: torch.Tensor) -> "Stored | NDArray[Any]":
        array = tensor.numpy()
        shape, dtype = array.shape, array.dtype.str
        for allocated, start in self._allocated:
            if allocated.data_ptr() == tensor.data_ptr():  # the same tensor, or the first rows of it
                return start, shape, dtype
        free = self._take(array.nbytes)
        if free is None:
            return array
        self._array(shape, dtype, free)[...] = array
        return free, shape, dtype


@cache
def _numpy_name(dtype: torch.dtype) -> str:
    """Return numpy's name of a torch dtype."""
    return str(dtype).removeprefix("torch.")


Stored = tuple[int, tuple[int, ...], str]
"""A tensor in a buffer: the byte at which it begins, its shape, and numpy's name of its dtype."""


class PackedBatch:
    """A batch on its way between processes: for each tensor the place in its buffer, or a plain array if it lies in none."""

    def __init__(self, stored: Batch, arena: int, buffer: int | None) -> None:
        self._stored, self._arena, self._buffer = stored, arena, buffer

    def open(self) -> Batch:
        """Return the batch. Its buffer is free again when the last of its tensors is gone."""
        buffer = None if self._buffer is None else _arenas[self._arena].borrow(self._buffer)

        def load(stored: "Stored | NDArray[Any]") -> torch.Tensor:
            if isinstance(stored, np.ndarray):
                return torch.from_numpy(stored)
            start, shape, dtype = stored
            return torch.from_numpy(np.ndarray(shape, dtype, buffer, start))

        return self._stored.map(load)
