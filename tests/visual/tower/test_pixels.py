import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from m3p.errors import UserError
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
    values = np.array(preparation.values, np.float32)
    return torch.from_numpy(np.stack([values[colour][square[..., colour]] for colour in range(3)]))[None]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(70, 51), (33, 90), (32, 32), (20, 25)])
def test_pixels_are_those_of_the_folders_image_processor(
    towers: Callable[[str], Path], name: str, shape: tuple[int, int]
) -> None:
    folder, picture = towers(name), scene(*shape)
    preparation = read_preparation(folder)
    found = numbers(preparation, preparation.resize(picture))
    torch.testing.assert_close(found, pixels_by_transformers(folder, Image.fromarray(picture)), rtol=0, atol=0)


FLIPPED = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32}
MORE = "does more than resize, crop the middle, rescale and normalise"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("clip", {"crop_size": 24}, ""),
        ("clip", {"size": 40, "crop_size": {"height": 32, "width": 32}}, ""),
        ("clip", {"image_mean": ..., "image_std": ...}, ""),
        ("vit", {"image_mean": ..., "do_normalize": False}, ""),
        ("vit", {"do_rescale": False}, ""),
        ("vit", {"do_center_crop": True, "crop_size": 24}, ""),
        ("vit", {"image_processor_type": "DeiTImageProcessor", "crop_size": 24}, ""),
        ("clip", {"crop_size": 48}, "crop_size is {'height': 48, 'width': 48}: want a square of at most 32"),
        ("efficientnet", {"include_top": True, "rescale_offset": True}, ""),
        ("convnext", {"crop_pct": ...}, ""),
        (
            "vit",
            {"size": {"shortest_edge": 32}},
            "pictures are not made square: want do_center_crop with shortest_edge",
        ),
        ("vit", {"do_resize": False}, "do_resize is false"),
        ("vit", {"resample": "bicubic"}, "'bicubic' is not a valid Resampling"),
        ("vit", {"resample": None}, "None is not a valid Resampling"),
        ("vit", {"image_std": [0, 1, 1]}, "no finite number: look at image_mean and image_std"),
        ("clip", {"do_pad": True, "pad_size": {"height": 64, "width": 64}}, MORE),
        ("clip", {"size": {"shortest_edge": 10**6}}, "pictures of 1000000 pixels a side; at most 4096"),
        ("vit", {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32}, MORE),
        ("vit", FLIPPED, MORE),
        (
            "vit",
            {"image_processor_type": "DINOv3ViTImageProcessorFast"},
            'nothing else .DINOv3., "image_processor_type"',
        ),
    ],
)
def test_settings_are_those_of_the_processor_or_refused(
    towers: Callable[[str], Path], tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    """Whatever settings a folder has; `...` takes one out. No message: pictures are prepared as the processor does."""
    folder = Path(shutil.copytree(towers(name), tmp_path / name))
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({field: value for field, value in settings.items() if value is not ...}))
    if message:
        with pytest.raises(UserError, match=rf"preprocessor_config.json: .*{message}"):
            read_preparation(folder)
        return
    preparation, picture = read_preparation(folder), scene(70, 51)
    found = numbers(preparation, preparation.resize(picture))
    torch.testing.assert_close(found, pixels_by_transformers(folder, Image.fromarray(picture)), rtol=0, atol=0)


def stored(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


COLOURS = Image.fromarray(scene(50, 40))
TURNED = Image.Exif()
TURNED[274] = 6  # to be shown turned by 90 degrees


@pytest.mark.parametrize(
    ("member", "data", "levels"),
    [
        *(("png", stored(COLOURS.convert(mode), "PNG"), 0) for mode in ("L", "1", "P", "LA", "RGBA")),
        ("png", stored(Image.merge("RGBA", [*COLOURS.split(), COLOURS.getchannel(0)]), "PNG"), 0),
        ("png", stored(COLOURS.crop((0, 0, 1, 1)), "PNG"), 0),
        ("jpg", stored(COLOURS.crop((0, 0, 1, 1)), "JPEG"), 0),
        ("jpg", stored(COLOURS.convert("L"), "JPEG"), 0),
        ("jpg", stored(COLOURS, "JPEG", progressive=True), 0),
        ("jpg", stored(COLOURS, "JPEG", exif=TURNED), 0),
        ("jpg", stored(COLOURS.convert("CMYK"), "JPEG"), 1),  # libjpeg and Pillow round differently
        ("webp", stored(COLOURS, "WEBP", lossless=True), 0),
    ],
    ids=[*"L1P", "LA", "RGBA", "clear", "pixel", "pixel-jpg", "grey-jpg", "progressive", "exif", "CMYK", "webp"],
)
def test_pictures_of_every_kind_are_seen_as_the_processor_sees_them(
    towers: Callable[[str], Path], member: str, data: bytes, levels: int
) -> None:
    """Of a processor that takes all kinds, and gets pictures as transformers' own `load_image` loads them."""
    folder = towers("clip")
    preparation = read_preparation(folder)
    seen = Tower(kind="tower", folder=folder, tokens=4).load({member: data}, None).features[0]
    wanted = pixels_by_transformers(folder, ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    step = np.ptp(preparation.values) / 255
    torch.testing.assert_close(numbers(preparation, seen), wanted, rtol=0, atol=levels * 1.1 * step)


def test_of_16_bits_the_upper_8_are_seen(towers: Callable[[str], Path]) -> None:
    """The processor paints all that is brighter than 255 of 65,535 white."""
    grey = scene(40, 40)[..., 0]
    visual = Tower(kind="tower", folder=towers("clip"), tokens=4)
    wide, plain = (
        visual.load({"png": stored(Image.fromarray(one), "PNG")}, None).features
        for one in (grey.astype(np.uint16) * 257, grey)
    )
    np.testing.assert_array_equal(wide, plain)


@pytest.mark.parametrize("shape", [(5, 333), (333, 5), (190, 11), (13, 777)])
def test_of_a_long_thin_picture_the_middle_is_the_processors(
    towers: Callable[[str], Path], shape: tuple[int, int]
) -> None:
    folder, picture = towers("dinov2"), scene(*shape)
    preparation = read_preparation(folder)
    found = numbers(preparation, preparation.resize(picture))
    wanted = pixels_by_transformers(folder, Image.fromarray(picture))
    step = np.ptp(preparation.values, axis=1).max() / 255
    torch.testing.assert_close(found, wanted, rtol=0, atol=1.1 * step)  # of 256 steps


def test_a_large_jpeg_is_scaled_while_it_is_decoded_and_differs_by_little(towers: Callable[[str], Path]) -> None:
    folder, data = towers("clip"), stored(Image.fromarray(scene(300, 400)), "JPEG", quality=95)
    found = Tower(kind="tower", folder=folder, tokens=16).load({"jpg": data}, None).features[0]
    wanted = pixels_by_transformers(folder, Image.open(io.BytesIO(data)))
    difference = (numbers(read_preparation(folder), found) - wanted).abs()
    assert float(difference.mean()) < 0.05, "of numbers from -1.8 to 2.1"


def test_a_long_thin_picture_does_not_fill_the_memory(towers: Callable[[str], Path]) -> None:
    preparation = read_preparation(towers("dinov2"))
    assert preparation.resize(np.zeros((1, 3_000_000, 3), np.uint8)).shape == (32, 32, 3)
    assert preparation.resize(np.zeros((3_000_000, 1, 3), np.uint8)).shape == (32, 32, 3)
