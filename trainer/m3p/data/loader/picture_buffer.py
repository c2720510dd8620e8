"""The picture buffer: memory that the pictures of a micro-batch are decoded into, side by side.

It is used again for each micro-batch: fresh memory costs a page fault every 4 kB.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from m3p.batch import Allocate, allocate_nothing

PictureMemory = NDArray[np.uint8]
"""Memory that one picture is decoded into, of the shape of its features."""

EXTRA_PICTURES = 4
"""Pictures that fit behind the decoded ones: a blank one, and some of other micro-batches that make mismatched pairs."""


class PictureBuffer:
    """One stretch of memory for the pictures of a micro-batch, divided into a part for each.

    It lies where the micro-batch is packed, if the caller's `allocate` gives memory there: then pictures that come once and in
    order are not copied when they are packed. Otherwise it lies in memory of its own, which the next micro-batch overwrites.

    Args:
        shape: of one picture's features; None where pictures differ in size, and each brings its own memory.
    """

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        self._shape = shape
        self._memory = np.empty(0, np.uint8)
        self.parts: list[PictureMemory | None] = []
        """Memory for each picture of the current micro-batch; None where a picture brings its own memory."""
        self.whole: torch.Tensor | None = None
        """All parts end to end and EXTRA_PICTURES more, if the memory was given by `allocate`; else None."""

    def divide(self, pictures: int, allocate: Allocate = allocate_nothing) -> list[PictureMemory | None]:
        """Return memory for each of `pictures` pictures, side by side, in memory that `allocate` gives if it has some."""
        self.whole, self.parts = None, [None] * pictures
        if self._shape is None or not pictures:
            return self.parts
        rows, *others = self._shape
        self.whole = allocate(((pictures + EXTRA_PICTURES) * rows, *others), torch.uint8)
        if self.whole is None:
            size = pictures * math.prod(self._shape)
            if len(self._memory) < size:
                self._memory = np.empty(size, np.uint8)
            memory = self._memory[:size]
        else:
            memory = self.whole.numpy()[: pictures * rows]
        self.parts = list(memory.reshape(pictures, *self._shape))
        return self.parts
