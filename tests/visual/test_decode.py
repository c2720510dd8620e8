import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from m3p.errors import BadSample
from m3p.visual.decode import as_decoded, decode, picture_kind
from m3p.visual.patches import Patches
from tests.visual.pictures import FORMATS, PIL_NAMES, encoded, gradient, png_header

PLAIN = encoded(
    np.kron(np.random.default_rng(0).integers(0, 255, (6, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8), "jpg"
)
TABLE, SCAN = PLAIN.find(b"\xff\xdb"), PLAIN.find(b"\xff\xda")


def with_byte(place: int, value: int) -> bytes:
    """The plain JPEG with one byte changed."""
    return PLAIN[:place] + bytes([value]) + PLAIN[place + 1 :]


FLAWED = {
    "scan parameters of a progressive JPEG": with_byte(SCAN + struct.unpack(">H", PLAIN[SCAN + 2 : SCAN + 4])[0], 0),
    "a byte before a marker": PLAIN[:TABLE] + b"\x00" + PLAIN[TABLE:],
    "bytes behind the pixels": PLAIN[:-2] + b"\x01" * 300 + PLAIN[-2:],
    "an unknown JFIF revision": PLAIN.replace(b"JFIF\x00\x01\x01", b"JFIF\x00\x02\x01", 1),
    "an ICC profile in parts that do not fit": PLAIN[:TABLE]
    + b"\xff\xe2\x00\x12ICC_PROFILE\x00\x05\x02ab"
    + PLAIN[TABLE:],
    "an unknown Adobe transform": PLAIN[:TABLE] + b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0\x07" + PLAIN[TABLE:],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("flaw", FLAWED)
@pytest.mark.parametrize("into", [False, True])
def test_a_jpeg_that_libjpeg_only_warns_of_has_the_pixels_that_pillow_gives(flaw: str, into: bool) -> None:
    space = np.empty((1, 48, 48, 3), np.uint8) if into else None
    found = decode(FLAWED[flaw], 48, into=space)
    wanted = np.asarray(Image.open(io.BytesIO(FLAWED[flaw])).convert("RGB"))
    np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)
    np.testing.assert_array_equal(wanted, np.asarray(Image.open(io.BytesIO(PLAIN)).convert("RGB")))


@pytest.mark.parametrize("flaw", FLAWED)
def test_a_flawed_jpeg_trains_like_its_faultless_twin(flaw: str) -> None:
    visual = Patches(kind="patches", size=16, patch=8)
    found, wanted = (visual.load({"jpg": data}, None).features.astype(int) for data in (FLAWED[flaw], PLAIN))
    assert np.abs(found - wanted).max() <= 60, "scaled while decoding or afterwards"
    assert np.abs(found - wanted).mean() < 6


@pytest.mark.parametrize("flaw", ["a byte before a marker", "bytes behind the pixels", "an unknown JFIF revision"])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_jpeg_that_is_cut_off_stays_bad(flaw: str, end: bytes) -> None:
    half = len(PLAIN) * 3 // 4
    for data in (PLAIN[:half] + end, FLAWED[flaw][:half]):
        with pytest.raises(BadSample, match="unreadable picture"):
            decode(data, 16)
        with pytest.raises(BadSample, match="unreadable picture"):
            decode(data, 48, into=np.empty((1, 48, 48, 3), np.uint8))


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_jpeg_whose_rest_is_blank_is_bad(kept: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "JPEG")
    content = stored.getvalue()
    size = int(kept * len(content))
    with pytest.raises(BadSample, match="Premature end of JPEG file"):
        decode(content[:size] + bytes(len(content) - size), 64)
    assert decode(content + bytes(1000), 64).shape[2] == 3, "blank bytes behind a whole one do no harm"


def test_a_flawed_jpeg_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(BadSample, match=r"48 x 48 pixels, more than visual\.max_pixels = 2303"):
        decode(FLAWED["an unknown JFIF revision"], 16, 2303)


def test_the_first_kind_of_picture_that_a_sample_has_is_its_picture() -> None:
    assert picture_kind({"json": b"", "webp": b"", "png": b""}) == "png"
    assert picture_kind({"json": b"", "txt": b""}) is None


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    shades = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    buffer = io.BytesIO()
    Image.fromarray(shades).save(buffer, "PNG")
    np.testing.assert_array_equal(decode(buffer.getvalue(), 16, 1000)[..., 1], shades >> 8)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "P"), ("WEBP", "RGBA")])
def test_what_is_transparent_lies_on_white(kind: str, mode: str) -> None:
    drawing = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (0, 0, 8, 16))
    buffer = io.BytesIO()
    drawing.convert(mode).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    found = decode(buffer.getvalue(), 16, 1000)
    assert (found[:, :8] == 0).all()
    assert (found[:, 8:] == 255).all()


def test_a_large_jpeg_is_scaled_while_decoding_and_never_below_the_size() -> None:
    data = encoded(gradient(640, 480), "jpg")
    assert decode(data, 60, 10**6).shape == (60, 80, 3)
    assert min(decode(data, 61, 10**6).shape[:2]) >= 61


def test_the_recipe_may_allow_pictures_that_the_library_warns_of() -> None:
    with pytest.raises(BadSample, match=r"truncated|broken|unreadable"):
        decode(png_header(10_000, 10_000), 16, 200_000_000)


def held(orientation: object, kind: str, size: tuple[int, int] = (40, 24)) -> bytes:
    """A picture of `size` whose EXIF says how the camera was held."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(gradient(*size)).save(buffer, PIL_NAMES[kind], exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned_upright_as_their_exif_says(kind: str, orientation: int) -> None:
    data = held(orientation, kind)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode(data, 24), wanted)
    np.testing.assert_array_equal(decode(data, 64, into=np.empty((1, 64, 64, 3), np.uint8)), wanted)


def test_a_square_picture_is_turned_in_the_memory_that_is_given() -> None:
    data = held(6, "jpg", (16, 16))
    turned = Patches(kind="patches", size=16, patch=8).load({"jpg": data}, None).features[0]
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(turned, np.asarray(wanted))


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_exif_that_cannot_be_read_turns_nothing(kind: str) -> None:
    data = held(6, kind)
    first = max(data.find(b"MM\0*"), data.find(b"II*\0"))
    broken = data[:first] + b"MM\0*\xff\xff\xff\xff" + data[first + 8 :]
    assert first > 0
    assert decode(broken, 24).shape == (24, 40, 3)


@pytest.mark.parametrize("strange", ["turned", "transparent", "sixteen bits"])
def test_an_opened_picture_has_the_pixels_of_its_file(strange: str) -> None:
    pixels, file, exif = gradient(24, 32), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    if strange == "turned":
        Image.fromarray(pixels).save(file, "PNG", exif=exif)
    elif strange == "transparent":
        Image.fromarray(np.concatenate([pixels, pixels[:, :, :1]], 2), "RGBA").save(file, "PNG")
    else:
        Image.fromarray(pixels[:, :, 0].astype(np.uint16) << 8).save(file, "PNG")
    with Image.open(io.BytesIO(file.getvalue())) as opened:
        assert np.array_equal(np.asarray(as_decoded(opened)), decode(file.getvalue(), 1))
