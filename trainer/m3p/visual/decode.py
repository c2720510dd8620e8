"""Stored pictures to pixels: which member of a sample is its picture, and how JPEG, PNG and WebP are decoded within bounds."""

import io
import warnings
from collections.abc import Callable, Container, Mapping

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from m3p.errors import BadSample

Pixels = NDArray[np.uint8]
IMAGE_KINDS = ("jpg", "jpeg", "png", "webp")
"""Extensions of pictures. A sample with several pictures has the first of these."""
MAX_PIXELS = 50_000_000
"""Pixels of a picture that is decoded, where no recipe says otherwise."""
_CUT = "premature end of data segment"
"""libjpeg's warning of a JPEG that has lost pixels but ends like a whole one: Pillow paints them grey, without an error."""
_NO_END = "Premature end of JPEG file"
"""libjpeg's warning of a JPEG without its last two bytes."""
_BLANK = bytes(64)
"""What a download that was broken off leaves behind its last bytes, in a file that was made at its full size."""
_ORIENTATION = 0x0112
"""The tag of EXIF that says how a camera was held."""
_EXIF, _EXIF_WITHIN = b"Exif\0\0", 64
"""How EXIF begins in a JPEG, and bytes in which it begins: it comes first, or behind the 18 bytes of JFIF."""
_UPRIGHT: Mapping[object, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}
"""EXIF's orientation -> what turns stored pixels upright; any other value says that they are (EXIF 2.32, table 6)."""


def picture_kind(members: Container[str]) -> str | None:
    """Return the extension of a sample's picture among the extensions of its members; None where it has no picture."""
    for kind in IMAGE_KINDS:  # a generator would cost more than all that is looked up
        if kind in members:
            return kind
    return None


def decode(data: bytes | memoryview, size: int, max_pixels: int = MAX_PIXELS, into: Pixels | None = None) -> Pixels:
    """Decode JPEG (scaled while decoding, never below `size`), PNG or WebP: -> RGB [height, width, 3].

    A picture is turned upright, as its EXIF says. The pixels may lie in `into` [1, size, size, 3], which is returned itself
    if they fill it. A JPEG that libjpeg warns of has the pixels that Pillow gives, at full size. Raises BadSample.
    """
    try:
        if into is None or size * size > max_pixels or _has_exif(data):
            return _decode_any(data, size, max_pixels)
        try:
            pixels = simplejpeg.decode_jpeg(data, buffer=into)
        except ValueError:  # a JPEG that is larger, and may be scaled; no JPEG; or what is broken
            return _decode_any(data, size, max_pixels)
        return into if pixels.shape == into.shape[1:] else pixels
    except BadSample:
        raise
    except UnidentifiedImageError as error:  # whose own text names an address in memory
        raise BadSample("unreadable picture: neither JPEG, PNG nor WebP") from error
    except Exception as error:  # on broken bytes decoders raise nearly anything, from OSError to KeyError
        raise BadSample(f"unreadable picture: {error}") from error


def _decode_any(data: bytes | memoryview, size: int, max_pixels: int) -> Pixels:
    """Decode into new memory. Raises BadSample, or nearly anything."""
    if data[:2] != b"\xff\xd8":
        return _decode_by_pillow(data, ("PNG", "WEBP"), max_pixels)
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(width, height, max_pixels)
        pixels = simplejpeg.decode_jpeg(data, min_height=size, min_width=size, min_factor=1)
        return _turn(pixels, _orientation_of_jpeg(data)) if _has_exif(data) else pixels
    except ValueError as warning:  # simplejpeg does not tell warnings of libjpeg from errors
        if _CUT in str(warning) or (_NO_END in str(warning) and data[-len(_BLANK) :] == _BLANK):
            raise
        return _decode_by_pillow(data, ("JPEG",), max_pixels)


def _decode_by_pillow(data: bytes | memoryview, formats: tuple[str, ...], max_pixels: int) -> Pixels:
    """Decode at full size. Pillow takes a JPEG with harmless flaws, and raises OSError for one that ends too soon."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of many pixels, where `max_pixels` is the rule; of flaws that do no harm
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            _check_pixels(*picture.size, max_pixels)
            return _turn(np.asarray(_in_colours(picture)), _orientation(picture))


def _has_exif(data: bytes | memoryview) -> bool:
    """Whether a JPEG has EXIF, which cameras write; no other kind of picture has it there."""
    return _EXIF in bytes(data[:_EXIF_WITHIN])


def _orientation_of_jpeg(data: bytes | memoryview) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
            return _orientation(picture)


def _orientation(picture: Image.Image) -> object:
    """Return EXIF's orientation; None where there is none, or EXIF that cannot be read, as viewers take it."""
    try:
        return picture.getexif().get(_ORIENTATION)
    except Exception:  # on broken bytes Pillow raises nearly anything; the pixels are whole
        return None


def _turn(pixels: Pixels, orientation: object) -> Pixels:
    """Turn pixels [height, width, 3] upright that are stored in EXIF's `orientation`."""
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _in_colours(picture: Image.Image) -> Image.Image:
    """Return a picture as RGB: what is transparent on white, as pages show it, and 16 bits of grey as the upper 8."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    coloured = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")


def as_decoded(picture: Image.Image) -> Image.Image:
    """Return an opened picture as its file is decoded: RGB, what is transparent on white, turned upright as its EXIF says."""
    return Image.fromarray(_turn(np.asarray(_in_colours(picture)), _orientation(picture)))


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadSample(f"a picture of {width} x {height} pixels, more than visual.max_pixels = {max_pixels}")
