"""Pictures for tests: drawn, encoded, and headers that lie."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FORMATS = ("jpg", "png", "webp")
PIL_NAMES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def gradient(width: int = 16, height: int = 16) -> NDArray[np.uint8]:
    """Red grows to the right, green grows downwards."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 40)], 2).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], kind: str = "png", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    options = {"quality": 95} if kind == "jpg" else {"lossless": True} if kind == "webp" else {}
    Image.fromarray(pixels).convert(mode).save(buffer, PIL_NAMES[kind], **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is large; a few bytes."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, data, b"IEND")
    )
