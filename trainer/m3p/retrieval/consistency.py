"""How evenly a system serves languages: the spread of a query's rank over languages, and the gap between languages.

rank_std is what CCRK (KDD 2024) calls MRV, mean rank variance: its released code averages the standard deviation
(`analysis_ranks` in xFlickrCO.py). rank_var is the variance, as the name says.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3p.retrieval.intervals import GroupedRanks


@dataclass(frozen=True)
class Spread:
    """The ranks of one direction, compared over languages and averaged over instances; all lower is better."""

    rank_std: float
    """Mean population standard deviation of an instance's ranks over languages."""
    rank_var: float
    """Mean population variance of an instance's ranks over languages."""
    rank_range: float
    """Mean of an instance's worst rank less its best, over languages."""
    instances: int
    """Instances that are queries in every language."""


def text_to_image_spread(languages: Mapping[str, GroupedRanks]) -> Spread | None:
    """Return the spread of captions that ask for pictures; an instance is a concept that is captioned in every language.

    With one caption a language, as CCRK has, an instance's rank is its caption's; with several, the mean of their ranks. None
    without two languages, or without an instance.
    """
    concepts = [np.unique(grouped.caption_groups) for grouped in languages.values()]
    shared = _shared(concepts)
    rows = []
    for grouped in languages.values():
        total = np.bincount(grouped.caption_groups, weights=grouped.ranks.text_to_image)
        number = np.bincount(grouped.caption_groups)
        rows.append(total[shared] / number[shared])
    return _spread(rows)


def image_to_text_spread(languages: Mapping[str, GroupedRanks]) -> Spread | None:
    """Return the spread of pictures that ask for captions; an instance is a picture that is captioned in every language.

    None without two languages, or without an instance.
    """
    asked = [np.flatnonzero(grouped.ranks.image_to_text > 0) for grouped in languages.values()]
    shared = _shared(asked)
    return _spread([grouped.ranks.image_to_text[shared].astype(np.float64) for grouped in languages.values()])


def _shared(found: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return what all of the arrays have."""
    shared = found[0]
    for other in found[1:]:
        shared = np.intersect1d(shared, other)
    return shared


def _spread(rows: list[NDArray[np.float64]]) -> Spread | None:
    """Return the spread of ranks, one array [instances] a language."""
    table = np.stack(rows)
    if len(table) < 2 or not table.shape[1]:
        return None
    return Spread(
        rank_std=float(table.std(axis=0).mean()),
        rank_var=float(table.var(axis=0).mean()),
        rank_range=float(np.ptp(table, axis=0).mean()),
        instances=table.shape[1],
    )
