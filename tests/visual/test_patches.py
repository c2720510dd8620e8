from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from m3p.errors import BadSample
from m3p.keys import draws
from m3p.visual.patches import MID_GREY, PatchEmbedder, Patches, PatchTokens
from m3p.visual.pixels import scaled
from tests.visual.pictures import FORMATS, encoded, gradient, png_header

NOTHING = torch.zeros(0, 4)


def patches(**settings: Any) -> Patches:
    return Patches.model_validate({"kind": "patches", "size": 16, "patch": 8, **settings})


def test_patches_are_numbered_row_by_row() -> None:
    found = patches().load({"png": encoded(gradient())}, None)
    assert found.tokens == 4
    assert found.targets_at(np.zeros(0, np.int64)).shape == (0, 3 * 8 * 8)
    for number, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        wanted = gradient()[top : top + 8, left : left + 8].reshape(-1)
        np.testing.assert_array_equal(found.targets_at(np.array([number]))[0], wanted)
        grey, hidden, numbers = found.blank(np.array([number]))
        assert grey is not None
        assert hidden.tolist() == numbers.tolist() == [number], "at the place of the one that it hides"
        assert (grey.features == MID_GREY).all()
        assert grey is found.blank(np.array([0]))[0], "held once, whatever it hides"
    np.testing.assert_array_equal(found.features[0], gradient(), "the picture itself is not touched")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", [(16, 16), (64, 48), (10, 31)])
def test_every_format_and_shape_gives_the_same_picture(kind: str, shape: tuple[int, int]) -> None:
    found = patches().load({kind: encoded(gradient(*shape), kind)}, None).targets_at(np.arange(4))
    assert found.shape == (4, 192)
    pixels = found.reshape(2, 2, 8, 8, 3).swapaxes(1, 2).reshape(16, 16, 3)
    assert np.abs(pixels.astype(int) - gradient()).max() < 32, "resizing moves an edge by about a pixel"


@pytest.mark.parametrize(("kind", "mode"), [("jpg", "L"), ("jpg", "CMYK"), ("png", "L"), ("png", "P"), ("png", "RGBA"),
                                            ("png", "1"), ("png", "LA"), ("webp", "RGBA")])  # fmt: skip
def test_every_kind_of_pixel_becomes_colour(kind: str, mode: str) -> None:
    assert patches().load({kind: encoded(gradient(), kind, mode)}, None).features.shape == (1, 16, 16, 3)


def test_the_content_says_what_a_picture_is_not_its_name() -> None:
    png = patches().load({"png": encoded(gradient())}, None)
    misnamed = patches().load({"jpg": encoded(gradient())}, None)
    np.testing.assert_array_equal(png.features, misnamed.features)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(kind: str) -> None:
    with pytest.raises(BadSample, match=r"17 x 16 pixels, more than visual.max_pixels = 271"):
        patches(max_pixels=271).load({kind: encoded(gradient(17, 16), kind)}, None)
    patches(max_pixels=272).load({kind: encoded(gradient(17, 16), kind)}, None)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [10_000, 13_000, 60_000, 2**31 - 1])
def test_a_decompression_bomb_is_a_bad_sample_and_no_warning(side: int) -> None:
    with pytest.raises(BadSample):
        patches().load({"png": png_header(side, side)}, None)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_picture_is_bad(kind: str) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8), kind)
    with pytest.raises(BadSample, match="unreadable picture"):
        patches().load({kind: data[: len(data) // 2]}, None)


@pytest.mark.long
@settings(max_examples=300)
@given(st.sampled_from(FORMATS), st.data())
def test_broken_bytes_are_a_bad_sample_or_usable_never_a_crash(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(gradient(), kind))
    for place in data.draw(st.lists(st.integers(0, min(len(content) - 1, 120)), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    try:
        found = patches(max_pixels=10**6).load({kind: bytes(content)}, None)
    except BadSample:
        return
    assert found.features.shape == (1, 16, 16, 3)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"GIF89a" + bytes(50), b"<svg/>"])
def test_what_is_no_picture_is_bad(data: bytes) -> None:
    with pytest.raises(BadSample, match="unreadable picture"):
        patches().load({"jpg": data}, None)


def test_a_sample_without_a_picture_is_bad() -> None:
    with pytest.raises(BadSample, match="no picture"):
        patches().load({"json": b"{}"}, None)


def test_crops_and_mirrors_belong_to_the_samples_draws() -> None:
    config, data = patches(crop=0.3, flip=True), {"png": encoded(gradient(64, 64))}
    same = [config.load(data, draws("a")).features for _ in range(2)]
    np.testing.assert_array_equal(same[0], same[1])
    assert not np.array_equal(same[0], config.load(data, draws("b")).features)
    np.testing.assert_array_equal(config.load(data, None).features, patches().load(data, None).features)


def means(config: Patches, number: int) -> tuple[NDArray[np.float32], bool]:
    """Red and green range seen in a training picture, and whether it is mirrored."""
    found = config.load({"png": encoded(gradient(64, 64))}, draws("crop", number))
    numbers = scaled(torch.from_numpy(found.targets_at(np.arange(4)))).numpy()
    colours = numbers.reshape(2, 2, 8, 8, 3).swapaxes(1, 2).reshape(16, 16, 3)
    mirrored = bool(colours[0, 0, 0] > colours[0, -1, 0])
    return np.abs(colours[-1, -1, :2] - colours[0, 0, :2]) / 2, mirrored


def test_a_crop_keeps_at_least_the_share_of_the_area_that_is_asked_for() -> None:
    seen = [means(patches(crop=0.25), number) for number in range(60)]
    assert not any(mirrored for _, mirrored in seen)
    sides = np.array([ranges.mean() for ranges, _ in seen])
    assert sides.min() > 0.4
    assert sides.max() > 0.85
    assert sides.std() > 0.1


def test_half_of_the_pictures_are_mirrored_and_none_without_flip() -> None:
    mirrored = [means(patches(flip=True), number)[1] for number in range(100)]
    assert 35 < sum(mirrored) < 65
    assert not any(means(patches(), number)[1] for number in range(20))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(2, 9), st.integers(1, 3))
def test_the_network_cuts_every_picture_as_its_tokens_are_numbered(side: int, patch: int, pictures: int) -> None:
    side = max(side, -(-8 // patch))
    config, rng = patches(size=side * patch, patch=patch), np.random.default_rng(0)
    seen = [PatchTokens(rng.integers(0, 256, config.memory_shape, np.uint8), patch) for _ in range(pictures)]
    embedder = config.embedder(8, 1e-5)
    assert isinstance(embedder, PatchEmbedder)
    found = embedder(torch.from_numpy(np.concatenate([one.features for one in seen])), NOTHING)
    numbers = torch.from_numpy(np.concatenate([one.targets_at(np.arange(side * side)) for one in seen]))
    wanted = embedder.norm(embedder.pixels(scaled(numbers)) + embedder.places.weight.repeat(pictures, 1))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_pixels_and_place_both_count() -> None:
    embedder = patches().embedder(8, 1e-5)
    grey, white = (torch.full((1, 16, 16, 3), value, dtype=torch.uint8) for value in (128, 255))
    out = embedder(grey, NOTHING)
    assert out.shape == (4, 8)
    assert (out[1:] != out[:1]).any(1).all(), "alike but for their places"
    assert (out != embedder(white, NOTHING)).any(1).all()


def test_a_picture_of_the_right_size_is_decoded_straight_into_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    into = np.zeros((1, 16, 16, 3), np.uint8)
    data = encoded(gradient(), "jpg")
    decoded = []
    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **o: decoded.append(o) or real(*a, **o))  # type: ignore[func-returns-value]
    found = patches().load({"jpg": data}, None, into)
    assert found.features is into
    assert [one.keys() for one in decoded] == [{"buffer"}]
    np.testing.assert_array_equal(into[0], real(data))


@pytest.mark.parametrize("shape", [(16, 16), (7, 9), (30, 8), (64, 48)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_room_changes_nothing(shape: tuple[int, int], flip: bool) -> None:
    config, data = patches(flip=flip, crop=0.5 if flip else 1.0), {"jpg": encoded(gradient(*shape), "jpg")}
    into = np.full((1, 16, 16, 3), 77, np.uint8)
    for number in range(6):
        alone, placed = (config.load(data, draws("room", number), there) for there in (None, into))
        assert placed.features is into
        np.testing.assert_array_equal(alone.features, placed.features)


def test_a_picture_of_too_many_pixels_is_bad_even_if_it_would_fit_its_room() -> None:
    with pytest.raises(BadSample, match=r"16 x 16 pixels, more than visual\.max_pixels = 255"):
        patches(max_pixels=255).load({"jpg": encoded(gradient(), "jpg")}, None)


def test_a_patch_that_does_not_divide_the_size_is_refused() -> None:
    with pytest.raises(ValidationError, match="patch = 5 does not divide size = 16: choose a divisor"):
        patches(patch=5)
