"""Random changes of training pictures: a crop, and mirroring."""

import math
from collections.abc import Iterator
from itertools import islice

from m3p.visual.decode import Pixels


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
