"""Stored tokens of a frozen tower: KEY.tower.npz in place of a picture, made once by `m3p prepare features`.

    features  float16 [k, D], or int8 [k, D] with
    scales    float32 [k]: what the numbers of a token are multiplied by
    tower     S16: the hash of the tower's settings and weights
    picture   uint64: the number of the picture's content, by which a picture is known again in all sources

Each sample names its tower, so that shards may be indexed anew, and features of two towers are never mixed without a word.
"""

import io
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from m3p.errors import BadSample
from m3p.visual.npz import read_npz

MEMBER = "tower.npz"
"""Extension of a sample's file of stored tokens."""
Format = Literal["float16", "int8"]
LARGEST_INT8 = 127
HASH = "S16"
"""numpy's type of a tower's hash."""


class StoredTower(BaseModel):
    """Which tower made the stored tokens of a source, and their form. Stands in its manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tower: str
    """Hash of its settings and weights."""
    tokens: int = Field(ge=1)
    """Tokens of a picture."""
    width: int = Field(ge=1)
    """Numbers of a token."""
    format: Format

    def __str__(self) -> str:
        return f"{self.tokens} tokens of {self.width} {self.format} numbers by the tower {self.tower}"


class StoredTokens(NamedTuple):
    """What a sample's file of stored tokens holds."""

    made_by: StoredTower
    picture: int
    """Number of the picture's content."""
    arrays: Mapping[str, NDArray[Any]]

    def features(self) -> NDArray[np.float16]:
        """Return the tokens, [k, D]. Raises BadSample for NaN and infinity."""
        found = self.arrays["features"]
        if found.dtype == np.int8:
            found = (found * self.arrays["scales"][:, None]).astype(np.float16)
        if not np.isfinite(found).all():
            raise BadSample(f"NaN, infinity or a number beyond float16 in the features of {MEMBER}")
        return np.ascontiguousarray(found)


def pack_tokens(features: NDArray[np.float32], format: Format, tower: str, picture: int) -> bytes:
    """Return the file of one picture's tokens [k, D], the same bytes for the same content. Raises ValueError: beyond float16."""
    with np.errstate(over="ignore"):
        halves = features.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueError("its features are no numbers, or too large for float16 (65,504)")
    arrays: dict[str, NDArray[Any]] = {"features": halves}
    if format == "int8":
        scales = np.abs(features).max(1) / LARGEST_INT8
        scales[scales == 0] = 1
        arrays = {"features": np.rint(features / scales[:, None]).astype(np.int8), "scales": scales.astype(np.float32)}
    arrays |= {"tower": np.array(tower.encode(), HASH), "picture": np.array(picture, np.uint64)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes its own options only
    return buffer.getvalue()


def read_tokens(data: bytes | memoryview) -> StoredTokens:
    """Read a sample's file of stored tokens, of any tower. Raises BadSample."""
    try:
        arrays = read_npz(data)
        features, tower, picture = (arrays[name] for name in ("features", "tower", "picture"))
        scales = arrays["scales"] if features.dtype == np.int8 else None
        right = features.ndim == 2 and features.size and tower.dtype == HASH and tower.shape == picture.shape == ()
        right = right and picture.dtype == np.uint64 and features.dtype in (np.float16, np.int8)
        if not right or (scales is not None and (scales.dtype != np.float32 or scales.shape != features.shape[:1])):
            raise ValueError("its arrays are not those that `m3p prepare features` writes")
        format: Format = "float16" if scales is None else "int8"
        made_by = StoredTower(
            tower=tower.item().decode("ascii"), tokens=features.shape[0], width=features.shape[1], format=format
        )
    except Exception as error:  # on broken bytes its parsers raise nearly anything, from KeyError to TokenError
        raise BadSample(f"unreadable {MEMBER}: {error}") from error
    return StoredTokens(made_by, picture.item(), arrays)
