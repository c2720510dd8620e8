"""Bootstrap intervals of mean recall: how far the queries at hand could have moved the number.

What is drawn anew is the *concept* (a picture, or all pictures that share captions) together with everything asked about
it: its captions in every language and its pictures, both directions. So queries that stand or fall together are kept
together, and the interval of a mean over languages that describe the same pictures is not too narrow, as it would be if
languages were drawn apart (Efron & Tibshirani 1993, cluster bootstrap; percentile interval).

In the interval: the choice of queries. Not in it: the training seed (several runs are needed for that), the choice of
the pictures and captions that are ranked against (ranks are taken as they are, the pool stays fixed), and the choosing
of settings on the same split. A recall of 0 or 100 gives an interval of no width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3p.keys import generator
from m3p.retrieval.metrics import CUTOFFS, QueryRanks

LEVEL = 95.0
RESAMPLES = 2_000
METHOD = f"{LEVEL:g} % percentile bootstrap over concepts, {RESAMPLES} resamples; no training seeds in it"
_BLOCK = 1 << 22  # concepts drawn at once: bounds the memory of large pools


@dataclass(frozen=True)
class GroupedRanks:
    """The ranks of one language, and the concept that each query asks about, numbered alike in all languages.

    `image_groups` int [N], `caption_groups` int [C].
    """

    ranks: QueryRanks
    image_groups: NDArray[np.int64]
    caption_groups: NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval, in percent (or, for a difference, in points)."""

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies in the interval: a difference that cannot be told from none."""
        return self.low <= 0 <= self.high


def mean_recall_interval(languages: Mapping[str, GroupedRanks], *, seed: int = 0) -> Interval:
    """Return the mean recall averaged over `languages` (one is fine) with its interval."""
    hits, asked = _table(languages)
    values = np.concatenate([_statistic(counts, hits, asked) for counts in _draws(hits.shape[0], seed)])
    return _percentiles(float(_statistic(np.ones((1, hits.shape[0])), hits, asked)[0]), values)


def query_interval(languages: Mapping[str, GroupedRanks], *, seed: int = 0) -> Interval:
    """Return the mean recall averaged over `languages` with the interval that single queries, drawn apart, would give.

    It takes queries about one picture as independent, which they are not: it is what other tools print, and mostly too narrow.
    """
    apart, first = dict[str, GroupedRanks](), 0
    for name, grouped in languages.items():
        captions, images = len(grouped.caption_groups), len(grouped.image_groups)
        numbers = np.arange(first, first + captions + images)
        apart[name] = GroupedRanks(grouped.ranks, numbers[captions:], numbers[:captions])
        first += captions + images
    return mean_recall_interval(apart, seed=seed)


def seeds_interval(runs: Sequence[Mapping[str, GroupedRanks]], *, seed: int = 0) -> Interval:
    """Return the mean recall averaged over `runs` that differ in their seed, with its interval over seeds and concepts.

    Each resample draws runs and, for all of them alike, concepts. With few seeds it is too narrow: three draws of three runs
    cannot show what a fourth would give. All runs must hold the same queries in the same order.
    """
    tables = [_table(languages) for languages in runs]
    assert all(np.array_equal(asked, tables[0][1]) for _, asked in tables), "the runs were asked different queries"
    groups = len(tables[0][1])
    drawn = generator("seeds", seed).integers(len(runs), size=(RESAMPLES, len(runs)))
    values = np.stack(
        [np.concatenate([_statistic(counts, *table) for counts in _draws(groups, seed)]) for table in tables]
    )
    resampled = np.take_along_axis(values.T, drawn, 1).mean(axis=1)
    value = float(np.mean([_statistic(np.ones((1, groups)), *table)[0] for table in tables]))
    return _percentiles(value, resampled)


def split_folds(name: str, grouped: GroupedRanks, folds: NDArray[np.int64]) -> dict[str, GroupedRanks]:
    """Return the ranks of each fold that is asked about, as if it were a language of its own; `folds` [N] is of each picture.

    A mean over these is the mean over folds, also where they differ in captions.
    """
    if not folds.any():
        return {name: grouped}
    fold_of = np.zeros(int(grouped.image_groups.max()) + 1, np.int64)
    fold_of[grouped.image_groups] = folds
    caption_folds = fold_of[grouped.caption_groups]
    parts = {}
    for fold in np.unique(caption_folds).tolist():
        images, captions = folds == fold, caption_folds == fold
        ranks = QueryRanks(grouped.ranks.text_to_image[captions], grouped.ranks.image_to_text[images])
        parts[f"{name}, fold {fold + 1}"] = GroupedRanks(
            ranks, grouped.image_groups[images], grouped.caption_groups[captions]
        )
    return parts


def difference_interval(a: Mapping[str, GroupedRanks], b: Mapping[str, GroupedRanks], *, seed: int = 0) -> Interval:
    """Return mean recall of `a` less that of `b`, averaged over languages, paired: each draw is the same for both.

    Both must hold the same languages with the same queries in the same order; anything else is a defect of the caller.
    """
    value, values = resampled_differences(a, b, seed=seed)
    return _percentiles(value, values)


def resampled_differences(
    a: Mapping[str, GroupedRanks], b: Mapping[str, GroupedRanks], *, seed: int = 0
) -> tuple[float, NDArray[np.float64]]:
    """Return the difference of the mean recalls and its value in each resample [RESAMPLES]; see `difference_interval`.

    The concepts drawn follow from their number and `seed` alone, so that several differences can be added resample by resample.
    """
    assert list(a) == list(b), (list(a), list(b))
    for language in a:
        for name in ("image_groups", "caption_groups"):
            assert np.array_equal(getattr(a[language], name), getattr(b[language], name)), f"{language}: other queries"
    (hits_a, asked), (hits_b, asked_b) = _table(a), _table(b)
    assert np.array_equal(asked, asked_b), "pictures that are queries differ"
    # Recalls are linear in the hits, so the difference of the hits gives the difference of the recalls.
    hits = hits_a - hits_b
    values = np.concatenate([_statistic(counts, hits, asked) for counts in _draws(hits.shape[0], seed)])
    return float(_statistic(np.ones((1, hits.shape[0])), hits, asked)[0]), values


def _percentiles(value: float, values: NDArray[np.float64]) -> Interval:
    """Return `value` with the interval that its resampled `values` [RESAMPLES] give."""
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _table(languages: Mapping[str, GroupedRanks]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return hits [G, L, 2, 3] within each cutoff and queries asked [G, L, 2, 1], for the G concepts that are asked."""
    assert languages, "no language"
    queries = [
        [(grouped.caption_groups, grouped.ranks.text_to_image), (grouped.image_groups, grouped.ranks.image_to_text)]
        for grouped in languages.values()
    ]
    asked_groups = [groups[found > 0] for pairs in queries for groups, found in pairs]
    known = np.unique(np.concatenate(asked_groups))
    assert len(known), "no query"
    hits = np.zeros((len(known), len(queries), 2, len(CUTOFFS)))
    asked = np.zeros((len(known), len(queries), 2, 1))
    for place, pairs in enumerate(queries):
        for way, (groups, found) in enumerate(pairs):
            rows = np.searchsorted(known, groups[found > 0])
            answered = found[found > 0]
            np.add.at(asked[:, place, way, 0], rows, 1)
            np.add.at(hits[:, place, way], rows, answered[:, None] <= np.array(CUTOFFS))
    return hits, asked


def _draws(groups: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each of `groups` concepts is drawn, float [block, G]; a function of (groups, seed) alone."""
    rng = generator("bootstrap", seed)
    block = max(1, _BLOCK // groups)
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        drawn = rng.integers(groups, size=(size, groups)) + groups * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups).astype(np.float64)


def _statistic(counts: NDArray[np.float64], hits: NDArray[np.float64], asked: NDArray[np.float64]) -> NDArray[Any]:
    """Return the mean recall, in percent, averaged over languages, of each resample: `counts` [B, G] -> [B].

    A language that is asked nothing in a resample (rare captions only) is left out of that resample's mean.
    """
    groups = len(hits)
    hit = (counts @ hits.reshape(groups, -1)).reshape(-1, *hits.shape[1:])
    total = (counts @ asked.reshape(groups, -1)).reshape(-1, *asked.shape[1:])
    recall = np.divide(hit, total, out=np.full_like(hit, np.nan), where=total > 0).mean(axis=(2, 3))  # [B, L]
    present = (~np.isnan(recall)).sum(axis=1)
    return 100 * np.nansum(recall, axis=1) / present  # every draw asks about something: _table keeps such concepts only
