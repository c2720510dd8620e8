"""Paired differences between two variants, over queries and seeds.

Each seed gives one run of either variant, evaluated on the same queries. A resample draws seeds with replacement, and concepts
with replacement (as retrieval/intervals.py does), the same ones for both variants. Its statistic is the difference of the mean
recalls, averaged over the drawn seeds (hierarchical bootstrap: Davison & Hinkley 1997, section 3.8; percentile interval). With
few seeds such an interval is too narrow: among three seeds, one resample in nine holds one seed alone. So the difference of
each seed is reported beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3p.keys import generator
from m3p.retrieval.intervals import LEVEL, RESAMPLES, GroupedRanks, Interval, resampled_differences

Languages = Mapping[str, GroupedRanks]


@dataclass(frozen=True)
class Difference:
    """Mean recall of one variant less another's, in points."""

    interval: Interval
    """Of the mean over seeds; over queries and seeds, or over queries alone where there is one seed."""
    by_seed: tuple[float, ...]
    """The difference of each seed's two runs."""


def difference(pairs: Sequence[tuple[Languages, Languages]], *, seed: int = 0) -> Difference:
    """Return the difference of `pairs`: for each seed the ranks of both variants, paired by query."""
    assert pairs, "no seed"
    values = [resampled_differences(a, b, seed=seed) for a, b in pairs]
    by_seed = tuple(value for value, _ in values)
    drawn: NDArray[np.float64] = np.stack([resamples for _, resamples in values])  # [seeds, RESAMPLES]
    picks = generator("bootstrap", "seeds", seed).integers(len(pairs), size=drawn.shape[::-1])  # [RESAMPLES, seeds]
    means = drawn[picks, np.arange(RESAMPLES)[:, None]].mean(axis=1)
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Difference(Interval(float(np.mean(by_seed)), float(low), float(high)), by_seed)
