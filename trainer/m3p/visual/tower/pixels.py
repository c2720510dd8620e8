"""How a tower's pictures are prepared: resized and cropped as uint8 by the data workers, made numbers on the device.

The settings are those of the folder's preprocessor_config.json, read by `transformers`, so that defaults of a class count too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m3p.errors import UserError
from m3p.quiet import quiet
from m3p.transformers_folder import read_json
from m3p.visual.decode import Pixels

PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Where a folder has the settings of its pictures: the first, or the second in folders of later versions."""
WARPED_FROM = 384
"""ConvNeXt's processor resizes to a square without a crop from this size on."""
MAX_STRETCHED = 16
"""A picture that is cropped in its middle is cut to so many times its shorter side first: one of 1 x 10,000,000 pixels would
fill the memory when its shorter side is resized to 256."""


@dataclass(frozen=True)
class Preparation:
    """From a decoded picture to the square that a tower takes."""

    size: int
    """Side of that square, in pixels."""
    resized: int
    """Pixels that the shorter side is resized to, or both sides, before the middle is cut out."""
    keeps_shape: bool
    """Whether the longer side is resized by the same factor as the shorter; else pictures become square at once."""
    resample: int
    """Pillow's interpolation."""
    scale: tuple[float, float, float]
    """Of each colour: what the tower takes is scale * pixel + offset, with pixels 0..255."""
    offset: tuple[float, float, float]

    def resize(self, pixels: Pixels) -> Pixels:
        """Resize and crop: [height, width, 3] -> [size, size, 3]."""
        if not self.keeps_shape:
            return _middle(self._resize(pixels, self.resized, self.resized), self.size, self.size)
        limit = MAX_STRETCHED * min(pixels.shape[:2])
        pixels = _middle(pixels, *(min(side, limit) for side in pixels.shape[:2]))
        height, width = pixels.shape[:2]
        longer = int(self.resized * max(height, width) / min(height, width))
        sides = (self.resized, longer) if height <= width else (longer, self.resized)
        return _middle(self._resize(pixels, *sides), self.size, self.size)

    def _resize(self, pixels: Pixels, height: int, width: int) -> Pixels:
        if pixels.shape[:2] == (height, width):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling(self.resample)))


def _middle(pixels: Pixels, height: int, width: int) -> Pixels:
    """Cut out the middle, as `transformers` does."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def preprocessor_file(folder: Path) -> Path:
    """Return the file of a folder that says how its pictures are prepared. Raises UserError where there is none."""
    path = next((folder / name for name in PREPROCESSOR_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{folder / PREPROCESSOR_FILES[0]} is missing: it says how pictures are resized and normalised; copy the model's own"
        )
    return path


def read_preparation(folder: Path) -> Preparation:
    """Return how pictures are prepared for the tower in `folder`. Raises UserError."""
    path = preprocessor_file(folder)
    read_json(path, "a file of settings")
    try:
        with quiet():
            from transformers import AutoImageProcessor

            processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
            size, resized, keeps_shape = _sides(processor)
            scale, offset = _numbers(processor)
    except UserError:
        raise
    except Exception as error:  # of wrong settings `transformers` raises nearly anything
        raise UserError(f"{path}: cannot be used ({error}); put back the model's own file") from error
    return Preparation(size, resized, keeps_shape, int(processor.resample), scale, offset)


def _sides(processor: Any) -> tuple[int, int, bool]:
    """Return `size`, `resized` and `keeps_shape` of a `Preparation`. Raises ValueError."""
    if not processor.do_resize:
        raise ValueError("do_resize is false, so its pictures would differ in size")
    size, share = processor.size, getattr(processor, "crop_pct", None)
    keeps_shape, resized = bool(size.shortest_edge), size.shortest_edge or size.height
    if not resized or size.longest_edge or size.max_height or (not keeps_shape and size.height != size.width):
        raise ValueError(f"size is {size}: want height and width alike, or shortest_edge")
    if share and keeps_shape:  # ConvNeXt
        return (resized, int(resized / share), True) if resized < WARPED_FROM else (resized, resized, False)
    if getattr(processor, "do_center_crop", False):
        crop = processor.crop_size
        if crop.height != crop.width or not 0 < (crop.height or 0) <= resized:
            raise ValueError(
                f"crop_size is {crop}: want a square of at most {resized}, the side of the resized picture"
            )
        return crop.height, resized, keeps_shape
    if keeps_shape:
        raise ValueError("pictures are not made square: want do_center_crop with shortest_edge")
    return resized, resized, False


def _numbers(processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return scale and offset of each colour, from what the processor makes of grey pictures. Raises ValueError.

    Rescaling, normalising once or twice (EfficientNet) and an offset are all one line a colour; that it is one is checked.
    """
    black, grey, white = (_seen(processor, value) for value in (0, 51, 255))
    scale = (white - black) / 255
    if not np.allclose(black + 51 * scale, grey, atol=1e-5) or not np.isfinite(scale).all():
        raise ValueError("what it makes of a pixel is no line: want rescaling and normalising alone")
    return tuple(scale.tolist()), tuple(black.tolist())


def _seen(processor: Any, value: int) -> Any:
    """Return what the processor makes of a picture of one grey, in float64: [3]."""
    picture = np.full((8, 8, 3), value, np.uint8)
    plain = {"do_resize": False, "do_center_crop": False, "do_pad": False, "input_data_format": "channels_last"}
    return np.asarray(processor(picture, return_tensors="np", **plain)["pixel_values"][0, :, 0, 0], np.float64)
