import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m3p.visual.decode import Pixels
from m3p.visual.tower.pixels import Preparation, read_preparation
from m3p.visual.tower.source import Tower
from tests.visual.tower.towers import NAMES, pixels_by_transformers


def scene(height: int, width: int) -> Pixels:
    """Draw a smooth picture with some noise."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (5 + 3 * colour) + y / 11) for colour in range(3)]
    noise = np.random.default_rng(0).normal(0, 9, (height, width, 3))
    return (np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


def numbers(preparation: Preparation, square: Pixels) -> torch.Tensor:
    """Return the numbers that a tower takes: [1, 3, size, size]."""
    scale, offset = torch.tensor(preparation.scale), torch.tensor(preparation.offset)
    return (torch.from_numpy(square.copy()) * scale + offset).permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(70, 51), (33, 90), (32, 32), (20, 25)])
def test_pixels_are_those_of_the_folders_image_processor(
    towers: Callable[[str], Path], name: str, shape: tuple[int, int]
) -> None:
    folder, picture = towers(name), scene(*shape)
    preparation = read_preparation(folder)
    found = numbers(preparation, preparation.resize(picture))
    torch.testing.assert_close(found, pixels_by_transformers(folder, Image.fromarray(picture)), rtol=0, atol=1e-5)


def test_a_large_jpeg_is_scaled_while_it_is_decoded_and_differs_by_little(towers: Callable[[str], Path]) -> None:
    folder, stored = towers("clip"), io.BytesIO()
    Image.fromarray(scene(300, 400)).save(stored, "JPEG", quality=95)
    found = Tower(kind="tower", folder=folder, tokens=16).load({"jpg": stored.getvalue()}, None).features[0]
    wanted = pixels_by_transformers(folder, Image.open(stored))
    difference = (numbers(read_preparation(folder), found) - wanted).abs()
    assert float(difference.mean()) < 0.05, "of numbers from -1.8 to 2.1"


def test_a_long_thin_picture_does_not_fill_the_memory(towers: Callable[[str], Path]) -> None:
    preparation = read_preparation(towers("dinov2"))
    assert preparation.resize(np.zeros((1, 3_000_000, 3), np.uint8)).shape == (32, 32, 3)
    assert preparation.resize(np.zeros((3_000_000, 1, 3), np.uint8)).shape == (32, 32, 3)
