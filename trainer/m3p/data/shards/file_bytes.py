"""The bytes of a file by slices, as of a memory map, but read: a map of a file that is cut short meanwhile ends the process."""

import os

CHUNK = 2**20
"""Bytes that are read at once where a tar is walked from end to end."""


class FileBytes:
    """An open file as a sequence of bytes. A slice that the file no longer has is shorter than asked for, as of `bytes`.

    Args:
        descriptor: of the file; whoever opened it closes it.
        size: bytes that count, as a rule all.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size
        self._first, self._chunk = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        first, end, _ = part.indices(self._size)
        if end - first > CHUNK:
            return self._read(first, end - first)
        if first < self._first or end > self._first + len(self._chunk):
            self._first, self._chunk = first, self._read(first, min(CHUNK, self._size - first))
        return self._chunk[first - self._first : max(end, first) - self._first]

    def _read(self, first: int, size: int) -> bytes:
        """Read `size` bytes from `first` on, fewer at the file's end; the system may hand over a part at a time."""
        parts = []
        while size > 0 and (part := os.pread(self._descriptor, size, first)):
            parts.append(part)
            first, size = first + len(part), size - len(part)
        return b"".join(parts)
