"""Room for the pictures of a micro-batch, used again and again: fresh memory costs a page fault every 4 kB."""

import numpy as np
from numpy.typing import NDArray

Room = NDArray[np.uint8]


class Canvas:
    """One stretch of memory, divided anew for every micro-batch; what was in it before is overwritten.

    Whoever keeps a picture beyond its micro-batch copies it: packing does.

    Args:
        shape: of one picture's features; None where pictures differ, and each brings its own memory.
    """

    def __init__(self, shape: tuple[int, int] | None) -> None:
        self._shape = shape
        self._memory = np.empty(0, np.uint8)

    def divide(self, pictures: int) -> list[Room | None]:
        """Return room for so many pictures, side by side."""
        if self._shape is None:
            return [None] * pictures
        size = pictures * self._shape[0] * self._shape[1]
        if len(self._memory) < size:
            self._memory = np.empty(size, np.uint8)
        return list(self._memory[:size].reshape(pictures, *self._shape))
