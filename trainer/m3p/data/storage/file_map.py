"""A file mapped into memory that somebody may cut short while it is read.

The system answers a read behind the new end of such a file with the signal SIGBUS, which ends a process. Here it puts zeros
in the place of the file and notes that it did, so that whoever reads can look, and name the file.
"""

import ctypes
import mmap
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

SA_SIGINFO, MAP_FIXED = 4, 0x10
"""Linux's numbers (signal.h, mman.h), which Python does not name."""
ADDRESS = 16
"""Bytes in front of the faulty address in a `siginfo_t` of a machine with 64 bits."""


class FileMap:
    """The first `size` bytes of the open file `descriptor`, mapped for reading as `content`."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._map = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)  # with a descriptor of its own
        self.content = memoryview(self._map)
        self._was_cut = False  # all of `content` is zeros then
        self._first = np.frombuffer(self.content, np.uint8).ctypes.data

    def is_whole(self) -> bool:
        """Tell whether the file has all of the mapped bytes now, and had them each time that `content` was read."""
        return not self._was_cut and self._map.size() >= len(self.content)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Survive that the file is cut short while the block reads `content`. What was read counts if it `is_whole` then."""
        _handle_faults()
        _watched.append(self)
        try:
            yield
        finally:
            _watched.remove(self)

    def _replace_if_holds(self, address: int) -> bool:
        """Map zeros over `content` if `address` lies in it; return whether it does."""
        if not self._first <= address < self._first + len(self.content):
            return False
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
        self._was_cut = True
        return bool(_libc().mmap(self._first, len(self.content), mmap.PROT_READ, flags, -1, 0) == self._first)


_watched: list[FileMap] = []
"""The maps of this process that are read now."""


class _Action(ctypes.Structure):
    """C's `struct sigaction`."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


_before = _Action()
"""What SIGBUS did before: it still does so for all other memory."""


def _on_fault(number: int, info: int, context: int) -> None:
    """Replace the map that was read; the read is then tried again. Runs at once: Python's own handlers run too late."""
    address = ctypes.c_void_p.from_address(info + ADDRESS).value or 0
    if not any(watched._replace_if_holds(address) for watched in _watched):
        _libc().sigaction(number, ctypes.byref(_before), None)


_called_on_fault = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_on_fault)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    return libc


@cache
def _handle_faults() -> None:
    """Have SIGBUS call `_on_fault`, in this process and in those that it forks."""
    action = _Action(handler=ctypes.cast(_called_on_fault, ctypes.c_void_p).value, flags=SA_SIGINFO)
    _libc().sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(_before))
