"""Small JPEGs of stored pictures: what a browser is shown is made here, never the stored bytes."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable

from PIL import Image

from m3p.visual.decode import decode

SIDES = {"small": 256, "large": 1024}
"""Longest side in pixels."""
MAX_KEPT = 64 * 2**20
"""Bytes of thumbnails that are kept in memory."""
AT_ONCE = 2
"""Pictures that are decoded at once: each may take some hundred megabytes for a moment."""


class Thumbnails:
    """Thumbnails of the pictures that `stored` gives by number, the last ones kept."""

    def __init__(self, stored: Callable[[int], bytes]) -> None:
        self._stored, self._lock, self._turns = stored, threading.Lock(), threading.Semaphore(AT_ONCE)
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._bytes = 0

    def get(self, number: int, side: int) -> bytes:
        """Return a JPEG of at most `side` pixels a side; empty where there is no picture.

        Raises BadSample, and what `stored` does.
        """
        with self._lock:
            if (number, side) in self._kept:
                self._kept.move_to_end((number, side))
                return self._kept[number, side]
        with self._turns:
            made = self._make(self._stored(number), side)
        with self._lock:
            if (number, side) not in self._kept:
                self._kept[number, side] = made
                self._bytes += len(made)
            while self._bytes > MAX_KEPT:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made

    def _make(self, content: bytes, side: int) -> bytes:
        if not content:
            return b""
        picture = Image.fromarray(decode(content, side))
        picture.thumbnail((side, side))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        return file.getvalue()
