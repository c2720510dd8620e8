"""Raw pictures cut into square patches (ViT, arXiv 2010.11929): no detector needed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from m3p.batch import Blank
from m3p.errors import BadSample
from m3p.visual.augment import PictureSource, augment
from m3p.visual.decode import IMAGE_KINDS, Pixels, decode, picture_kind
from m3p.visual.pixels import scaled

MID_GREY = 128
LEAST_OF_PIXEL = 0.1
"""Square of a pixel in -1..1, its mean over a patch: a third in noise, 1 in white and black."""


@dataclass(slots=True)
class PatchTokens:
    """A square picture as decoders write it. The network cuts it: a worker that did would copy all that it has decoded."""

    features: Pixels
    """[1, size, size, 3], 0..255: a quarter of the bytes of float32."""
    patch: int
    """Side of a patch, in pixels."""

    @property
    def boxes(self) -> None:
        """None: a patch's number says where it is."""

    @property
    def class_ids(self) -> None:
        """None."""

    @property
    def tokens(self) -> int:
        """Patches."""
        side: int = self.features.shape[1] // self.patch
        return side * side

    def targets_at(self, places: NDArray[np.int64]) -> Pixels:
        """Return the pixels of the patches at `places` [K], which are numbered row by row from the top left: [K, 3 patch^2]."""
        cells = self._cells()
        return cells[np.divmod(places, len(cells))].reshape(len(places), 3 * self.patch**2)

    def class_distribution_at(self, places: NDArray[np.int64]) -> None:
        """None: patches have no classes."""

    @property
    def least_length(self) -> float:
        """Of a patch whose pixels are next to mid grey."""
        return LEAST_OF_PIXEL * 3 * self.patch**2

    def blank(self, places: NDArray[np.int64]) -> Blank:
        """Show a mid grey picture, one and the same for all of this size: each patch stands for the one at its place."""
        return Blank(_grey(self.features.shape[1], self.patch), places, places)

    def _cells(self) -> Pixels:
        """The same memory as [side, side, patch, 3 patch]."""
        side = self.features.shape[1] // self.patch
        return self.features.reshape(side, self.patch, side, 3 * self.patch).swapaxes(1, 2)


@cache
def _grey(size: int, patch: int) -> PatchTokens:
    return PatchTokens(np.full((1, size, size, 3), MID_GREY, np.uint8), patch)


class Patches(PictureSource):
    """Square pictures of `size` pixels, which the network cuts into patches of `patch` pixels."""

    kind: Literal["patches"]
    size: int = Field(224, ge=8, description="Side of the picture as the network sees it, in pixels.")
    patch: int = Field(16, ge=2, description="Side of a patch, in pixels; it divides the size.")

    @model_validator(mode="after")
    def _patch_divides(self) -> "Patches":
        if self.size % self.patch:
            raise ValueError(f"patch = {self.patch} does not divide size = {self.size}: choose a divisor of the size")
        return self

    @property
    def target_size(self) -> int:
        """Numbers of a patch: its pixels in three colours."""
        return 3 * self.patch * self.patch

    @property
    def tokens_per_picture(self) -> int:
        """Patches."""
        return (self.size // self.patch) ** 2

    @property
    def features(self) -> tuple[int, ...]:
        """Shape of a picture."""
        return self.size, self.size, 3

    @property
    def least(self) -> tuple[int, ...]:
        """Shape of the least that the embedder takes: a picture of one patch."""
        return 1, self.patch, self.patch, 3

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """Shape of the memory that a picture is decoded into."""
        return 1, *self.features

    def load(
        self, members: Mapping[str, bytes | memoryview], draw: Iterator[float] | None, into: Pixels | None = None
    ) -> PatchTokens:
        """Decode into `into`, crop (by the sample's own `draw`; None: never) and resize. Raises BadSample."""
        into = np.empty(self.memory_shape, np.uint8) if into is None else into
        kind = picture_kind(members)
        if kind is None:
            raise BadSample(f"no picture (a member {', '.join(IMAGE_KINDS)})")
        pixels = decode(members[kind], self.size, self.max_pixels, into)
        if pixels is not into or draw is not None:
            self._paint(pixels[0] if pixels is into else pixels, draw, into[0])
        return PatchTokens(into, self.patch)

    def _paint(self, pixels: Pixels, draw: Iterator[float] | None, into: Pixels) -> None:
        """Crop, resize, and lay onto `into` [size, size, 3], in whose memory `pixels` may lie."""
        if draw is not None:
            pixels = augment(pixels, draw, self.crop, self.flip)
        if pixels.shape != into.shape:
            resized = Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.BILINEAR)
            pixels = np.asarray(resized)
        into[...] = pixels

    def embedder(self, width: int, eps: float) -> nn.Module:
        """Return the module that turns pictures into vectors."""
        return PatchEmbedder(self.size // self.patch, self.patch, width, eps)

    def embedder_flops(self, width: int) -> float:
        """Linear of the pixels, forward and gradient of its weight: nothing before it is trained."""
        return 2 * 2 * width * self.target_size

    def rows_to_hide(self, tokens: float) -> float:
        """None: all pictures share one that is grey."""
        return 0.0

    def show(self, features: Tensor, rows: NDArray[np.int64]) -> Image.Image:
        """Return the picture whose patches are `rows`."""
        side, patch = self.size // self.patch, self.patch
        cells = features.numpy().reshape(-1, side, patch, side, patch, 3).swapaxes(2, 3)
        shown = cells.reshape(-1, patch, patch, 3)[rows].reshape(side, side, patch, patch, 3)
        return Image.fromarray(shown.swapaxes(1, 2).reshape(self.size, self.size, 3))


class PatchEmbedder(nn.Module):
    """Linear of a patch's pixels + a learned vector for its place on the grid, layer norm."""

    def __init__(self, side: int, patch: int, width: int, eps: float) -> None:
        super().__init__()
        self.patch = patch
        self.pixels = nn.Linear(3 * patch * patch, width)
        self.places = nn.Embedding(side * side, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """`features` [N, size, size, 3] pixels 0..255; no boxes are needed: -> [N side^2, width], row by row."""
        side = features.shape[1] // self.patch
        cells = features.view(-1, side, self.patch, side, 3 * self.patch).transpose(2, 3)
        pixels = scaled(cells.reshape(-1, 3 * self.patch**2))
        places = self.places(torch.arange(side**2, device=features.device))
        vectors = self.pixels(pixels.to(self.pixels.weight.dtype)).view(-1, *places.shape) + places
        return self.norm(vectors).flatten(0, 1)
