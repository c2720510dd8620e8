"""Keyed randomness: every random choice is drawn from a generator that is a function of what it belongs to.

Keys are hashed, never added (seed 5, epoch 1 must not be seed 6, epoch 0), and wide enough not to collide.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray


def key(*parts: int | str) -> int:
    """Hash `parts` to a 64-bit key; ("a", 1) and ("a1",) give different keys."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(*parts: int | str) -> np.random.Generator:
    """Return a counter-based generator (Philox) keyed by `parts`: same parts, same numbers, on every machine."""
    return np.random.Generator(np.random.Philox(_Key(key(*parts))))  # type: ignore[arg-type]  # its stubs know one kind of seed


class _Key(ISeedSequence):
    """A key where numpy wants a seed. `Philox(key=...)` gives the same numbers, but asks the system for entropy first."""

    def __init__(self, key: int) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> NDArray[np.uint64]:
        """Return the key of a Philox, [2]."""
        assert (n_words, dtype) == (2, np.uint64), (n_words, dtype)
        return np.array([self._key, 0], np.uint64)
