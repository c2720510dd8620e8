"""Ranks and recalls of image retrieval, by the normative definitions of the evaluation protocol (ties count against).

With several right pictures a caption, or several right captions a picture, the rank is that of the best right one, and
other right ones never push it down. CLIP_benchmark and mteb break ties by order, which flatters a constant score.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (1, 5, 10)
_BLOCK = 1 << 22  # scores looked at at once: bounds the copies made of a large score matrix


class Recalls(TypedDict):
    """Recalls in percent, {"R@1", "R@5", "R@10"} each way, and the mean of the six."""

    text_to_image: dict[str, float]
    image_to_text: dict[str, float]
    mean_recall: float


@dataclass(frozen=True)
class QueryRanks:
    """The rank of the best right answer to each query, from 1.

    `text_to_image` int64 [C]; `image_to_text` int64 [N], where 0 marks a picture that has no caption in this language:
    it is no query, and stays in the gallery as a wrong answer to others.
    """

    text_to_image: NDArray[np.int64]
    image_to_text: NDArray[np.int64]


def query_ranks(scores: NDArray[np.floating[Any]], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the rank of the best right candidate of each row: int64 [Q], 0 for a row without a right candidate.

    `scores` is float [Q, P], higher is better, `right` bool [Q, P]. The rank is 1 + the number of wrong candidates that
    score at least as high as the best right one. -inf is allowed (a pair outside a shortlist); NaN raises ValueError.
    """
    assert scores.shape == right.shape, (scores.shape, right.shape)
    queries, candidates = scores.shape
    result = np.zeros(queries, dtype=np.int64)
    rows = max(1, _BLOCK // max(1, candidates))
    for start in range(0, queries, rows):
        block, block_right = scores[start : start + rows], right[start : start + rows]
        if np.isnan(block).any():
            raise ValueError("scores hold NaN: no rank can be given")
        best = np.where(block_right, block, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
        ahead = ((block >= best) & ~block_right).sum(axis=1)
        result[start : start + rows] = np.where(block_right.any(axis=1), 1 + ahead, 0)
    return result


def rank_both_ways(scores: NDArray[np.floating[Any]], right: NDArray[np.bool_]) -> QueryRanks:
    """Rank both ways from one score matrix: `scores` float [N pictures, C captions], `right` bool [N, C].

    A re-ranked shortlist has one matrix a direction: call `query_ranks` twice instead.
    Raises ValueError for NaN scores and for a caption without a right picture.
    """
    text_to_image = query_ranks(scores.T, right.T)
    if (text_to_image == 0).any():
        raise ValueError(f"caption {int(np.argmin(text_to_image))} has no right picture in the pool")
    return QueryRanks(text_to_image, query_ranks(scores, right))


def recalls(found: QueryRanks) -> Recalls:
    """Return the six recalls and their mean, all in percent. Raises ValueError when a direction has no query."""
    text_to_image = _recall_at_cutoffs(found.text_to_image)
    image_to_text = _recall_at_cutoffs(found.image_to_text[found.image_to_text > 0])
    mean = float(np.mean([*text_to_image.values(), *image_to_text.values()]))
    return Recalls(text_to_image=text_to_image, image_to_text=image_to_text, mean_recall=mean)


def _recall_at_cutoffs(asked: NDArray[np.int64]) -> dict[str, float]:
    if not len(asked):
        raise ValueError("no query, so there is no recall")
    return {f"R@{k}": 100 * float((asked <= k).mean()) for k in CUTOFFS}


def chance(right: NDArray[np.bool_]) -> float:
    """Return the expected mean recall, in percent, of random scores without ties; `right` is bool [N, C].

    A query with m right among P candidates is hit at k unless the first k of a random order are all wrong, which is
    hypergeometric: 1 - C(P-m, k) / C(P, k). For 100 pictures with one caption each it is (1 + 5 + 10) / 3 = 5.33.
    """
    values = []
    for table in (right.T, right):
        candidates, numbers = table.shape[1], table.sum(axis=1)
        numbers = numbers[numbers > 0]
        if not len(numbers):
            raise ValueError("no query has a right answer in the pool")
        for k in CUTOFFS:
            missed = np.ones(len(numbers))
            for drawn in range(min(k, candidates)):
                missed *= np.clip(candidates - numbers - drawn, 0, None) / (candidates - drawn)
            values.append(100 * float(1 - missed.mean()))
    return float(np.mean(values))
