"""Raw pictures cut into square patches (ViT, arXiv 2010.11929): no detector needed."""

import io
import math
import threading
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from trainer.batch import VisualTokens, scaled
from trainer.errors import BadSample

Pixels = NDArray[np.uint8]
IMAGE_KINDS = ("jpg", "jpeg", "png", "webp")


class Patches(BaseModel):
    """Square pictures of `size` pixels, cut into patches of `patch` pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["patches"]
    size: int = Field(224, ge=8, description="Side of the picture as the network sees it, in pixels.")
    patch: int = Field(16, ge=2, description="Side of a patch, in pixels; it divides the size.")
    crop: float = Field(
        1.0, gt=0, le=1, description="Smallest share of the area that a training crop keeps; 1: no crop."
    )
    flip: bool = Field(
        False, description="Mirror half of the training pictures; wrong where captions speak of left and right."
    )
    largest: int = Field(50_000_000, ge=1, description="Pictures of more pixels are bad samples (decompression bombs).")

    @model_validator(mode="after")
    def _patch_divides(self) -> "Patches":
        if self.size % self.patch:
            raise ValueError(f"patch = {self.patch} does not divide size = {self.size}: choose a divisor of the size")
        return self

    @property
    def feature_size(self) -> int:
        """Numbers of a patch: its pixels in three colours."""
        return 3 * self.patch * self.patch

    @property
    def classes(self) -> int:
        """Pixels have no object classes."""
        return 0

    @property
    def augments(self) -> bool:
        """Whether training pictures are changed at random."""
        return self.flip or self.crop < 1

    def check(self, folder: str, width: int | None) -> None:
        """Pixels are there in every source of pairs."""

    @property
    def shape(self) -> tuple[int, int]:
        """Patches of a picture, and numbers of a patch."""
        return (self.size // self.patch) ** 2, self.feature_size

    def load(
        self, members: Mapping[str, bytes], rng: np.random.Generator | None, room: Pixels | None = None
    ) -> VisualTokens:
        """Decode, crop (with the sample's own `rng`; None: never), resize and cut into `room` [R, F]. Raises BadSample."""
        picture = members.get("jpg") or next((members[kind] for kind in IMAGE_KINDS if kind in members), None)
        if picture is None:
            raise BadSample(f"no picture (a member {', '.join(IMAGE_KINDS)})")
        pixels = decode(picture, self.size, self.largest)
        if rng is not None:
            pixels = _augment(pixels, rng, self.crop, self.flip)
        if pixels.shape[:2] != (self.size, self.size):
            resized = Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.BILINEAR)
            pixels = np.asarray(resized)
        room = np.empty(self.shape, np.uint8) if room is None else room
        return VisualTokens(_cut(pixels, self.patch, room), _grid(self.size // self.patch))

    def embedder(self, width: int, eps: float) -> nn.Module:
        """Return the module that turns patches into vectors."""
        return PatchEmbedder(self.feature_size, self.size // self.patch, width, eps)


class PatchEmbedder(nn.Module):
    """Linear of the pixels + a learned vector for the patch's place on the grid, layer norm: -> [V, width]."""

    def __init__(self, feature_size: int, side: int, width: int, eps: float) -> None:
        super().__init__()
        self.side = side
        self.pixels = nn.Linear(feature_size, width)
        self.places = nn.Embedding(side * side, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """`features` [V, 3 patch^2] pixels 0..255, `boxes` [V, 4] in 0..1; a box's corner says the place."""
        # Scaled in float32: bf16 holds the pixels exactly, but not what is left of a mid grey after the subtraction.
        features = scaled(features.float()).to(self.pixels.weight.dtype)
        # In float32 and with half a cell added, so that no rounding (bf16 boxes) moves a patch to its neighbour's place.
        cell = (boxes[:, :2].float() * self.side + 0.5).long().clamp(max=self.side - 1)
        return self.norm(self.pixels(features) + self.places(cell[:, 1] * self.side + cell[:, 0]))


def decode(data: bytes, size: int, largest: int) -> Pixels:
    """Decode JPEG (scaled while decoding, never below `size`), PNG or WebP: -> RGB [height, width, 3].

    The pixels may lie in a buffer that the next call overwrites. Raises BadSample.
    """
    try:
        if data[:2] == b"\xff\xd8":
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            _check_pixels(width, height, largest)
            if (height, width) == (size, size):
                return simplejpeg.decode_jpeg(data, buffer=_scratch(size))
            return simplejpeg.decode_jpeg(data, min_height=size, min_width=size, min_factor=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `largest` is the rule
            with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as picture:
                _check_pixels(*picture.size, largest)
                return np.asarray(picture.convert("RGB"))
    except BadSample:
        raise
    except UnidentifiedImageError as error:  # whose own text names an address in memory
        raise BadSample("unreadable picture: neither JPEG, PNG nor WebP") from error
    except Exception as error:  # on broken bytes decoders raise nearly anything, from OSError to KeyError
        raise BadSample(f"unreadable picture: {error}") from error


def _check_pixels(width: int, height: int, largest: int) -> None:
    if width * height > largest:
        raise BadSample(f"a picture of {width} x {height} pixels, more than visual.largest = {largest}")


def _augment(pixels: Pixels, rng: np.random.Generator, crop: float, flip: bool) -> Pixels:
    area, x, y, mirror = rng.random(4)  # always four draws, so that one option does not change another's choices
    if crop < 1:
        scale = math.sqrt(crop + (1 - crop) * area)
        height, width = pixels.shape[0] * scale, pixels.shape[1] * scale
        left, top = x * (pixels.shape[1] - width), y * (pixels.shape[0] - height)
        # At least one pixel is left of a picture that has few.
        bottom, right = max(round(top + height), round(top) + 1), max(round(left + width), round(left) + 1)
        pixels = pixels[round(top) : bottom, round(left) : right]
    return pixels[:, ::-1] if flip and mirror < 0.5 else pixels


def _cut(pixels: Pixels, patch: int, room: Pixels) -> Pixels:
    """[size, size, 3] -> `room` [places, 3 patch^2]; `pixels` may lie in any buffer."""
    width = 3 * patch
    rows = np.ascontiguousarray(pixels).reshape(-1, width)
    # (mode="clip": otherwise numpy copies what it writes to, lest a wrong number leave it half written.)
    rows.take(_rows(pixels.shape[0] // patch, patch), 0, out=room.reshape(-1, width), mode="clip")
    return room


@cache
def _rows(side: int, patch: int) -> NDArray[np.int64]:
    """Where the rows of patches [side^2 x patch] stand among those of the picture [side x patch x side]."""
    return np.arange(side * patch * side).reshape(side, patch, side).swapaxes(1, 2).reshape(-1)


_own = threading.local()
OFF = 16
"""Bytes from a multiple of 64 at which pictures are decoded to. At a multiple of 32, libjpeg-turbo (AVX2) writes past the
caches, straight to memory, from where the patches must be read again: decoding and cutting took 10 to 18 % longer."""


def _scratch(size: int) -> Pixels:
    """Room for one picture, each thread's own, used again and again: fresh memory costs a page fault every 4 kB."""
    if getattr(_own, "size", None) != size:
        memory = np.empty(3 * size * size + 64 + OFF, np.uint8)
        first = -memory.ctypes.data % 64 + OFF
        _own.size, _own.scratch = size, memory[first : first + 3 * size * size].reshape(size, size, 3)
    scratch: Pixels = _own.scratch
    return scratch


@cache
def _grid(side: int) -> NDArray[np.float32]:
    """Boxes [side^2, 4] of the grid's cells, row by row; shared by all pictures."""
    y, x = np.divmod(np.arange(side * side), side)
    boxes = (np.stack([x, y, x + 1, y + 1], 1) / side).astype(np.float32)
    boxes.flags.writeable = False
    return boxes
