import io
from typing import Any

import numpy as np
import pytest

from m3p.errors import BadSample
from m3p.visual.tower.store import StoredTower, pack_tokens, read_tokens

TOWER = "0123456789abcdef"


def tokens() -> Any:
    return np.random.default_rng(0).normal(0, 30, (4, 6)).astype(np.float32)


def test_tokens_come_back_as_float16() -> None:
    found = read_tokens(pack_tokens(tokens(), "float16", TOWER, 2**64 - 1))
    assert found.made_by == StoredTower(tower=TOWER, tokens=4, width=6, format="float16")
    assert found.picture == 2**64 - 1
    np.testing.assert_array_equal(found.features(), tokens().astype(np.float16))
    assert pack_tokens(tokens(), "float16", TOWER, 5) == pack_tokens(tokens(), "float16", TOWER, 5)


def test_int8_has_a_scale_a_token_and_takes_numbers_of_any_size() -> None:
    large = tokens() * np.array([[1e-4], [1], [500], [0]], np.float32)
    found = read_tokens(pack_tokens(large, "int8", TOWER, 1))
    assert found.made_by.format == "int8"
    limit = np.abs(large).max(1, keepdims=True)
    assert (np.abs(found.features().astype(np.float32) - large) <= limit / 127 / 2 * 1.2 + 1e-7).all()
    assert len(pack_tokens(np.ones((49, 768), np.float32), "int8", TOWER, 1)) < 49 * 768 + 2000


def test_what_float16_cannot_hold_is_refused() -> None:
    for bad in (1e6, np.nan):
        with pytest.raises(ValueError, match=r"no numbers, or too large for float16 \(65,504\)"):
            pack_tokens(np.full((1, 2), bad, np.float32), "float16", TOWER, 1)


def archive(**arrays: Any) -> bytes:
    """Return an npz of the arrays; those that are left out are right."""
    right = {"features": np.ones((4, 6), np.float16), "tower": np.array(TOWER.encode(), "S16"), "picture": np.uint64(3)}
    buffer = io.BytesIO()
    np.savez(buffer, **{**right, **arrays})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 and no more",
        archive(features=np.ones((4, 6), np.float32)),
        archive(features=np.ones((4, 6, 1), np.float16)),
        archive(features=np.ones((0, 6), np.float16)),
        archive(features=np.ones((4, 6), np.int8)),
        archive(features=np.ones((4, 6), np.int8), scales=np.ones(3, np.float32)),
        archive(features=np.array([{}], object)),
        archive(tower=np.array([TOWER.encode()], "S16")),
        archive(tower=np.array("é" * 8, "U16")),
        archive(tower=np.array(b"\xff" * 16, "S16")),
        archive(picture=np.int64(3)),
        archive()[:-100],
    ],
)
def test_what_is_not_as_written_is_a_bad_sample(data: bytes) -> None:
    with pytest.raises(BadSample, match=r"unreadable tower.npz"):
        read_tokens(data)


def test_nan_is_a_bad_sample() -> None:
    with pytest.raises(BadSample, match="NaN, infinity"):
        read_tokens(archive(features=np.full((4, 6), np.nan, np.float16))).features()
    with pytest.raises(BadSample, match="NaN, infinity"):
        read_tokens(archive(features=np.ones((4, 6), np.int8), scales=np.full(4, 1e6, np.float32))).features()
