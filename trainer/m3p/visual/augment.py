"""Visual sources of raw pictures: what they may be, and their random changes in training, a crop and mirroring."""

import math
from collections.abc import Iterator
from itertools import islice

from pydantic import Field

from m3p.visual.decode import MAX_PIXELS, Pixels
from m3p.visual.source import VisualSource


class PictureSource(VisualSource):
    """Recipe fields that all sources of raw pictures have."""

    crop: float = Field(
        1.0, gt=0, le=1, description="Smallest share of the area that a training crop keeps; 1: no crop."
    )
    flip: bool = Field(
        False, description="Mirror half of the training pictures; wrong where captions speak of left and right."
    )
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, description="Pictures of more pixels are bad samples (decompression bombs)."
    )

    @property
    def shown_pixels(self) -> int:
        """As many as a picture may have."""
        return self.max_pixels

    @property
    def augments(self) -> bool:
        """Whether training pictures are changed at random."""
        return self.flip or self.crop < 1


def augment(pixels: Pixels, draw: Iterator[float], crop: float, flip: bool) -> Pixels:
    """Crop and mirror a picture [height, width, 3] by the numbers (0..1) of `draw`; the result may be a view.

    Args:
        crop: smallest share of the area that is kept; 1: no crop.
        flip: whether half of the pictures are mirrored.
    """
    area, x, y, mirror = islice(draw, 4)  # always four draws, so that one option does not change another's choices
    if crop < 1:
        scale = math.sqrt(crop + (1 - crop) * area)
        height, width = pixels.shape[0] * scale, pixels.shape[1] * scale
        left, top = x * (pixels.shape[1] - width), y * (pixels.shape[0] - height)
        # At least one pixel is left of a picture that has few.
        bottom, right = max(round(top + height), round(top) + 1), max(round(left + width), round(left) + 1)
        pixels = pixels[round(top) : bottom, round(left) : right]
    return pixels[:, ::-1] if flip and mirror < 0.5 else pixels
