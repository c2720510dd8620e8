"""Keyed randomness: every random choice is a function of what it belongs to.

Keys are hashed, never added (seed 5, epoch 1 must not be seed 6, epoch 0), and wide enough not to collide. A generator of
numpy's costs ten microseconds to make: the few choices of one sample come from `draws`, and those of many samples at once,
a number for each, from `hashes`.
"""

import hashlib
import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

Item = TypeVar("Item")


def key(*parts: int | str) -> int:
    """Hash `parts` to a 64-bit key; ("a", 1) and ("a1",) give different keys."""
    return int.from_bytes(hashlib.blake2b(_name(parts), digest_size=8).digest(), "little")


def draws(*parts: int | str) -> Iterator[float]:
    """Yield numbers in 0..1 (not included) without end: same parts, same numbers, on every machine."""
    name = _name(parts)
    for block in itertools.count():
        digest = hashlib.blake2b(name, salt=block.to_bytes(8, "little")).digest()
        yield from ((number >> 11) * 2.0**-53 for number in struct.unpack("<8Q", digest))


def pick(items: Sequence[Item], draw: float) -> Item:
    """Return one of `items`, each for an equal share of the draws in 0..1."""
    return items[int(draw * len(items))]


def _name(parts: tuple[int | str, ...]) -> bytes:
    return "\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode()


def generator(*parts: int | str) -> np.random.Generator:
    """Return a counter-based generator (Philox) keyed by `parts`: same parts, same numbers, on every machine."""
    return np.random.Generator(np.random.Philox(_Key(key(*parts))))  # type: ignore[arg-type]  # its stubs know one kind of seed


def keys_of(owners: NDArray[np.uint64], purpose: str) -> NDArray[np.uint64]:
    """Hash each row of `owners` [N, K] together with `purpose`: [N]."""
    # Each column under a salt of its own, so that equal numbers in two columns do not cancel (Zobrist hashing).
    salts = splitmix64(np.arange(owners.shape[1], dtype=np.uint64))
    return splitmix64(np.bitwise_xor.reduce(splitmix64(owners ^ salts), 1) ^ np.uint64(key(purpose)))


def hashes(keys: NDArray[np.uint64], places: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a random number for each place of each key, [W] of both [W]; `splitmix64` gives a further one, again and again."""
    return splitmix64(keys ^ splitmix64(places.astype(np.uint64)))


def uniform(numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return random 64-bit numbers as numbers in 0..1 (not included), of the same shape."""
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose(coins: NDArray[np.float64], lengths: NDArray[np.int64], rate: float) -> NDArray[np.int64]:
    """Return which of `coins` [W] are below `rate`, in rising order: [K].

    They lie in runs of `lengths` [N]. Of a run with none, the lowest is chosen; but none of 1 and above ever is.
    """
    chosen = coins < rate
    ends = lengths.cumsum()
    filled = lengths > 0
    starts, ends = (ends - lengths)[filled], ends[filled]
    if len(starts):
        for run in (np.logical_or.reduceat(chosen, starts) == 0).nonzero()[0].tolist():
            lowest = starts[run] + coins[starts[run] : ends[run]].argmin()
            chosen[lowest] = coins[lowest] < 1
    return chosen.nonzero()[0]


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64 of each value (Steele, Lea and Flood 2014): a bijection in which every bit depends on every."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


class _Key(ISeedSequence):
    """A key where numpy wants a seed. `Philox(key=...)` gives the same numbers, but asks the system for entropy first."""

    def __init__(self, key: int) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> NDArray[np.uint64]:
        """Return the key of a Philox, [2]."""
        assert (n_words, dtype) == (2, np.uint64), (n_words, dtype)
        return np.array([self._key, 0], np.uint64)
