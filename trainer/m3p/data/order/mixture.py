"""MixtureOrder: position of the mixture -> (source, position in that source), exactly and without state.

Weights become integer counts of one block. The block is laid out once by smooth weighted round-robin (nginx's
`ngx_http_upstream_get_peer`) and repeats for ever, so block number and place in it answer every question in O(1).
Differences of rounded cumulative weights would not do: with three sources a count can go back by one.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 65_536
"""Longest block. Weights that need a longer one are rounded to it, an error of at most one position in it."""


class Share(NamedTuple):
    """Whose turn a position is."""

    source: int
    """Number of the source, in the order of the weights."""
    position: int
    """Position in the order of that source: how many earlier ones of the mixture went to it."""


class MixtureOrder:
    """An endless sequence of sources in which each has its share.

    Smooth: of the first p positions, a source has never got one more than its exact share of p, nor
    1 + 1/2 + ... + 1/sources fewer (the bound of the greedy emptier in the cup game).

    Args:
        weights: above 0, in any unit. Text and integers are taken exactly ("0.1", "1/3"), a float as its shortest
            decimal form (0.1 is one tenth).
    """

    def __init__(self, weights: Sequence[str | int | float]) -> None:
        self.counts = block_counts([Fraction(str(weight)) for weight in weights])
        """Positions of each source in one block."""
        self.block = sum(self.counts)
        """Positions after which the sequence repeats."""
        self._sources, self._before = _table(self.counts)

    def place(self, position: int) -> Share:
        """Return the source of one position, 0 or more, and the position in it."""
        assert position >= 0, position
        block, offset = divmod(position, self.block)
        source = int(self._sources[offset])
        return Share(source, block * self.counts[source] + int(self._before[offset]))

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return sources, and positions in them, int64 [N] each, of `positions` [N], 0 or more."""
        blocks, offsets = np.divmod(np.asarray(positions, np.int64), self.block)
        assert blocks.size == 0 or blocks.min() >= 0, "positions start at 0"
        sources = self._sources[offsets].astype(np.int64)
        return sources, blocks * np.array(self.counts, np.int64)[sources] + self._before[offsets]


def block_counts(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Turn weights into the counts of one block: exact if its length is at most `BLOCK`, else rounded to `BLOCK`.

    Rounding is by largest remainder (ties: the earlier source), with at least one position for each source.
    """
    assert 0 < len(weights) <= BLOCK, len(weights)
    assert min(weights) > 0, "a source of weight 0 is left out before"
    unit = lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * unit) for weight in weights]
    common = gcd(*whole)
    if sum(whole) <= BLOCK * common:
        return tuple(weight // common for weight in whole)
    counts = [1] * len(whole)
    free = list(range(len(whole)))
    while True:
        room, total = BLOCK - (len(whole) - len(free)), sum(whole[i] for i in free)
        enough = [i for i in free if whole[i] * room >= total]
        if enough == free:
            break
        free = enough  # the others keep their one position
    for i in free:
        counts[i] = whole[i] * room // total
    left = BLOCK - sum(counts)
    for i in sorted(free, key=lambda i: -(whole[i] * room % total))[:left]:
        counts[i] += 1
    return tuple(counts)


@lru_cache(maxsize=16)
def _table(counts: tuple[int, ...]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Lay out one block: the source of each place, and the places of that source before it, int32 [block] each."""
    total, weights = sum(counts), np.array(counts, np.int64)
    sources, before = np.empty(total, np.int32), np.empty(total, np.int32)
    lag, used = np.zeros_like(weights), [0] * len(counts)
    for place in range(total):
        lag += weights
        source = int(lag.argmax())
        lag[source] -= total
        sources[place], before[place] = source, used[source]
        used[source] += 1
    sources.flags.writeable = before.flags.writeable = False
    return sources, before


def temperature_weights(sizes: Sequence[int], exponent: float) -> list[float]:
    """Return p^exponent, normalised, of the shares p of `sizes`: 1 keeps them, 0 makes them equal (XLM, XLM-R: 0.3).

    Rounded to 12 significant digits, so that a last bit of `pow` that differs between machines changes no order.
    """
    assert sizes, "no source"
    assert min(sizes) > 0, "an empty source is left out before"
    total = sum(sizes)
    powers = [(size / total) ** exponent for size in sizes]
    return [float(f"{power / sum(powers):.12g}") for power in powers]
