"""What a connection sends, with a deadline for a request: a timeout between bytes alone lets a client hold a place for good."""

import io
import socket
import time


class TimedBytes(io.RawIOBase):
    """The bytes that come over a connection, as a raw stream.

    Args:
        connection: that is read from.
        timeout: seconds without a byte, and seconds from the first byte after `restart` to the last one that is read.
    """

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self._connection, self._timeout = connection, timeout
        self._end: float | None = None

    def restart(self) -> None:
        """Begin a new request, or a body: its time counts from its first byte."""
        self._end = None

    def readable(self) -> bool:
        """Say that it is to be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from its start; return how many bytes, 0 at the end. Raises TimeoutError."""
        left = self._timeout if self._end is None else self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not come to its end in time")
        self._connection.settimeout(left)
        try:
            size = self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(self._timeout)  # answers have all of it
        if self._end is None:
            self._end = time.monotonic() + self._timeout
        return size
