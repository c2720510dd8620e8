"""Intervals over queries and seeds, against cases in which they are known."""

import numpy as np
import pytest

from m3p.ablation.statistics import difference
from m3p.retrieval.intervals import GroupedRanks, difference_interval
from m3p.retrieval.metrics import QueryRanks


def ranked(hits: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> dict[str, GroupedRanks]:
    """A language of N pictures and captions of which those in `hits` are found first, the others twentieth."""
    found, numbers = np.where(hits, 1, 20), np.arange(len(hits))
    return {"en": GroupedRanks(QueryRanks(found, found), numbers, numbers)}


def shares(rng: np.random.Generator, share: float, queries: int = 200) -> dict[str, GroupedRanks]:
    return ranked(rng.random(queries) < share)


def test_one_seed_is_the_interval_over_queries() -> None:
    rng = np.random.default_rng(0)
    a, b = shares(rng, 0.6), shares(rng, 0.4)
    assert difference([(a, b)]).interval == difference_interval(a, b)


def test_the_difference_is_the_mean_of_the_seeds() -> None:
    rng = np.random.default_rng(1)
    pairs = [(shares(rng, 0.6), shares(rng, 0.5)) for _ in range(4)]
    found = difference(pairs)
    assert found.interval.value == pytest.approx(np.mean(found.by_seed))
    assert found.by_seed == tuple(difference_interval(a, b).value for a, b in pairs)


def test_seeds_that_disagree_widen_the_interval() -> None:
    better, worse = ranked(np.arange(200) < 150), ranked(np.arange(200) < 50)
    agree = difference([(better, worse)] * 4).interval
    disagree = difference([(better, worse), (worse, better)] * 2).interval
    assert not agree.holds_zero
    assert disagree.holds_zero
    assert disagree.high - disagree.low > 2 * (agree.high - agree.low)


@pytest.mark.long
def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Runs that differ by chance alone, in queries and in seeds: zero is outside in few of 200 trials with ten seeds each."""
    rng, missed = np.random.default_rng(2), 0
    for _ in range(200):
        pairs = []
        for _ in range(10):
            luck = rng.normal(0, 0.05, 2)
            pairs.append((shares(rng, 0.5 + luck[0], 60), shares(rng, 0.5 + luck[1], 60)))
        missed += not difference(pairs).interval.holds_zero
    assert missed <= 30, "5 % of 200 are 10; with ten seeds the percentile bootstrap misses up to twice as often"
