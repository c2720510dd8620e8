"""How a tower's pictures are prepared: resized and cropped as uint8 by the data workers, made numbers on the device.

The settings are those of the folder's preprocessor_config.json, read by `transformers`, so that defaults of a class count too.
Its image processors know more than is done here (channels in another order, padding, a crop before the resizing). So what is
made of a few pictures is compared with what the folder's own processor makes of them; where they differ the folder is refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m3p.errors import UserError
from m3p.quiet import quiet
from m3p.transformers_folder import CONFIG_FILE, read_json
from m3p.visual.decode import Pixels

PREPROCESSOR_FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
"""Where a folder has the settings of its pictures: `transformers` 4 saves the first, 5 the second of a model with text."""
IN_PROCESSOR = "image_processor"
"""Field of the second that holds them."""
WARPED_FROM = 384
"""ConvNeXt's processor resizes to a square without a crop from this size on."""
MAX_SIDE = 4096
"""Pixels of a side that a tower's picture has, at most, and the shorter side that it is resized to."""
MAX_STRETCHED = 16
"""Of a picture with sides as far apart as this, only the middle is resized: one of 1 x 10,000,000 pixels would fill the memory
when its shorter side is resized to 256."""


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
    values: tuple[tuple[float, ...], ...]
    """Of each colour, what the tower takes for a pixel of 0, 1, ... 255: float32, equal to the processor's to the last bit."""

    def resize(self, pixels: Pixels) -> Pixels:
        """Resize and crop: [height, width, 3] -> [size, size, 3]."""
        if not self.keeps_shape:
            return _middle(self._resize(pixels, self.resized, self.resized), self.size, self.size)
        height, width = pixels.shape[:2]
        longer = int(self.resized * max(height, width) / min(height, width))
        sides = (self.resized, longer) if height <= width else (longer, self.resized)
        if max(height, width) > MAX_STRETCHED * min(height, width):
            return self._resize_middle(pixels, *sides)
        return _middle(self._resize(pixels, *sides), self.size, self.size)

    def _resize(self, pixels: Pixels, height: int, width: int) -> Pixels:
        if pixels.shape[:2] == (height, width):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling(self.resample)))

    def _resize_middle(self, pixels: Pixels, height: int, width: int) -> Pixels:
        """Return the middle of the picture resized to height x width, without making the rest of it."""
        across, down = pixels.shape[1] / width, pixels.shape[0] / height
        top, left = (height - self.size) // 2, (width - self.size) // 2
        box = (left * across, top * down, (left + self.size) * across, (top + self.size) * down)
        size = (self.size, self.size)
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling(self.resample), box))


def _middle(pixels: Pixels, height: int, width: int) -> Pixels:
    """Cut out the middle, as `transformers` does."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def preprocessor_file(folder: Path) -> Path:
    """Return the file of a folder that says how its pictures are prepared, of two the one that `transformers` reads.

    Raises UserError where there is none.
    """
    path = folder / PROCESSOR_FILE
    if path.is_file() and read_json(path, "a file of settings").get(IN_PROCESSOR) is not None:
        return path
    path = folder / PREPROCESSOR_FILE
    if not path.is_file():
        if _is_timm(folder):
            raise UserError(
                f"{folder}: a model of timm, which prepares pictures in its own way; take a folder of a model that "
                "`transformers` itself has, such as a ViT, Swin, ConvNeXt or DINOv2"
            )
        raise UserError(f"{path} is missing: it says how pictures are resized and normalised; copy the model's own")
    return path


def _is_timm(folder: Path) -> bool:
    path = folder / CONFIG_FILE
    return path.is_file() and read_json(path, "a model's settings").get("model_type") == "timm_wrapper"


def read_preparation(folder: Path) -> Preparation:
    """Return how pictures are prepared for the tower in `folder`. Raises UserError."""
    path = preprocessor_file(folder)
    read_json(path, "a file of settings")
    try:
        with quiet():
            from transformers import AutoImageProcessor

            processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
            size, resized, keeps_shape = _sides(processor)
            if max(size, resized) > MAX_SIDE:
                raise UserError(f"{path}: pictures of {max(size, resized)} pixels a side; at most {MAX_SIDE}")
            resample = int(Image.Resampling(processor.resample))
            preparation = Preparation(size, resized, keeps_shape, resample, _values(processor))
            _compare(preparation, processor)
    except UserError:
        raise
    except Exception as error:  # of wrong settings `transformers` raises nearly anything
        raise UserError(
            f"{path}: cannot be used ({_line(error)}); put back the model's own file. Where pictures are resized to a square, "
            'rescaled and normalised and nothing else (DINOv3), "image_processor_type": "ViTImageProcessor" says so'
        ) from error
    return preparation


def _line(error: Exception) -> str:
    """Return an error in one line of bounded length."""
    return " ".join(str(error).split())[:300]


def _compare(preparation: Preparation, processor: Any) -> None:
    """Raise ValueError where the processor makes other numbers of a picture: of one wide, one high, one large."""
    side, values = min(preparation.resized, 256), np.array(preparation.values)
    step = np.ptp(values, axis=1).max() / 255
    for height, width in ((37, 60), (90, 53), (2 * side + 7, side + 6)):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
        found = np.asarray(processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0], np.float64)
        square = preparation.resize(pixels)
        wanted = np.stack([values[colour][square[..., colour]] for colour in range(3)])
        # By less than a tenth of a step between two of a pixel's 256 values.
        if found.shape != wanted.shape or not (np.abs(found - wanted) <= 0.1 * step).all():
            raise ValueError(
                f"{type(processor).__name__} with these settings does more than resize, crop the middle, rescale and normalise"
            )


def _sides(processor: Any) -> tuple[int, int, bool]:
    """Return `size`, `resized` and `keeps_shape` of a `Preparation`. Raises ValueError."""
    if not processor.do_resize:
        raise ValueError("do_resize is false, so its pictures would differ in size")
    size, share = processor.size, getattr(processor, "crop_pct", None)
    keeps_shape, resized = bool(size.shortest_edge), size.shortest_edge or size.height
    if not resized or size.longest_edge or size.max_height or (not keeps_shape and size.height != size.width):
        raise ValueError(f"size is {_given(size)}: want height and width alike, or shortest_edge")
    if share and keeps_shape:  # ConvNeXt
        return (resized, int(resized / share), True) if resized < WARPED_FROM else (resized, resized, False)
    if getattr(processor, "do_center_crop", False):
        crop = processor.crop_size
        if crop.height != crop.width or not 0 < (crop.height or 0) <= resized:
            raise ValueError(
                f"crop_size is {_given(crop)}: want a square of at most {resized}, the side of the resized picture"
            )
        return crop.height, resized, keeps_shape
    if keeps_shape:
        raise ValueError("pictures are not made square: want do_center_crop with shortest_edge")
    return resized, resized, False


def _given(size: Any) -> dict[str, int]:
    """Return what is set of a size of `transformers`."""
    return {name: value for name, value in vars(size).items() if value is not None}


def _values(processor: Any) -> tuple[tuple[float, ...], ...]:
    """Return `values` of a `Preparation`: what the processor makes of a picture of all greys. Raises ValueError."""
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    plain = {"do_resize": False, "do_center_crop": False, "do_pad": False, "input_data_format": "channels_last"}
    found = np.asarray(processor(picture, return_tensors="np", **plain)["pixel_values"][0], np.float32)
    if found.shape != (3, 16, 16) or not np.isfinite(found).all():
        raise ValueError("what it makes of a pixel is no finite number: look at image_mean and image_std")
    return tuple(map(tuple, found.reshape(3, 256).tolist()))
