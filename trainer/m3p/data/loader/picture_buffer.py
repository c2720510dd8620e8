"""Room for the pictures of a micro-batch, used again and again: fresh memory costs a page fault every 4 kB."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from m3p.batch import find_room

Room = NDArray[np.uint8]

SPARE = 4
"""Pictures that find room behind those decoded: a blank one, and some of another micro-batch that make mismatches."""


class Canvas:
    """One stretch of memory for each micro-batch, divided among its pictures.

    It lies where the thread packs (`m3p.batch.set_room`), so that a micro-batch whose pictures come once and in order
    needs no copy of them; otherwise in memory of its own, which the next micro-batch overwrites.

    Args:
        shape: of one picture's features; None where pictures differ, and each brings its own memory.
    """

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        self._shape = shape
        self._memory = np.empty(0, np.uint8)
        self.rooms: list[Room | None] = []
        """Of the micro-batch under way."""
        self.whole: torch.Tensor | None = None
        """All rooms end to end, and spare room, where they lie in room that the thread packs into."""

    def divide(self, pictures: int) -> list[Room | None]:
        """Return room for so many pictures, side by side."""
        self.whole, self.rooms = None, [None] * pictures
        if self._shape is None or not pictures:
            return self.rooms
        rows, *others = self._shape
        self.whole = find_room(((pictures + SPARE) * rows, *others), torch.uint8)
        if self.whole is None:
            size = pictures * math.prod(self._shape)
            if len(self._memory) < size:
                self._memory = np.empty(size, np.uint8)
            memory = self._memory[:size]
        else:
            memory = self.whole.numpy()[: pictures * rows]
        self.rooms = list(memory.reshape(pictures, *self._shape))
        return self.rooms
