"""Keyed randomness: every random choice is drawn from a generator that is a function of what it belongs to.

Keys are hashed, never added (seed 5, epoch 1 must not be seed 6, epoch 0), and wide enough not to collide.
"""

import hashlib

import numpy as np


def key(*parts: int | str) -> int:
    """Hash `parts` to a 64-bit key; ("a", 1) and ("a1",) give different keys."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(*parts: int | str) -> np.random.Generator:
    """Return a counter-based generator (Philox) keyed by `parts`: same parts, same numbers, on every machine."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))
