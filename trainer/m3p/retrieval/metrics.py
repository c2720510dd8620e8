"""Ranks, recalls and nDCG of image retrieval. Ties count against the system, unless a protocol says otherwise.

With several right pictures a caption, or several right captions a picture, the rank is that of the best right one, and
other right ones never push it down. CLIP_benchmark and mteb break ties by order, which flatters a constant score.
hit@1 of mteb is R@1; its nDCG@10 has a gain of 1 for every right answer, as in trec_eval.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (1, 5, 10)
NDCG_DEPTH = 10
_BLOCK = 1 << 22  # scores looked at at once: bounds the copies made of a large score matrix

Ties = Literal["against", "order"]
"""Where candidates score alike: right ones come behind wrong ones, or the one with the lower number comes first."""


class Recalls(TypedDict):
    """Recalls in percent, {"R@1", "R@5", "R@10"} each way, and the mean of the six."""

    text_to_image: dict[str, float]
    image_to_text: dict[str, float]
    mean_recall: float


@dataclass(frozen=True)
class QueryRanks:
    """The rank of the best right answer to each query, from 1, and the nDCG@10 of each query where it was computed.

    `text_to_image` int64 [C]; `image_to_text` int64 [N], where 0 marks a picture that has no caption in this language:
    it is no query, and stays in the gallery as a wrong answer to others. `text_to_image_ndcg` [C] and `image_to_text_ndcg`
    [N] are 0..1, and NaN where the rank is 0.
    """

    text_to_image: NDArray[np.int64]
    image_to_text: NDArray[np.int64]
    text_to_image_ndcg: NDArray[np.float64] | None = None
    image_to_text_ndcg: NDArray[np.float64] | None = None


class Ranked(NamedTuple):
    """What the scores of one direction say of each query."""

    ranks: NDArray[np.int64]
    """[Q] rank of the best right candidate, from 1; 0 for a query without a right candidate."""
    ndcg: NDArray[np.float64]
    """[Q] nDCG@10, 0..1; NaN for a query without a right candidate."""


class Beyond(NamedTuple):
    """What a shortlist leaves out: all of it ranks behind what is listed, right ones behind wrong ones."""

    rights: NDArray[np.int64]
    """[Q] right candidates of each query in the whole pool."""
    candidates: int
    """Candidates in the whole pool."""


def rank_queries(
    scores: NDArray[np.floating[Any]],
    right: NDArray[np.bool_],
    ties: Ties = "against",
    beyond: Beyond | None = None,
) -> Ranked:
    """Rank the candidates of each query: `scores` float [Q, P], higher is better; `right` bool [Q, P].

    The rank is 1 + the number of wrong candidates that score at least as high as the best right one (ties against). With
    `beyond`, the P candidates are a shortlist of a larger pool. -inf is allowed (a pair that was not scored); NaN raises
    ValueError.
    """
    assert scores.shape == right.shape, (scores.shape, right.shape)
    queries, candidates = scores.shape
    found = Ranked(np.zeros(queries, np.int64), np.full(queries, np.nan))
    rows = max(1, _BLOCK // max(1, candidates))
    for start in range(0, queries, rows):
        part = slice(start, start + rows)
        block, block_right = scores[part], right[part]
        if np.isnan(block).any():
            raise ValueError("scores hold NaN: no rank can be given")
        rights = block_right.sum(axis=1) if beyond is None else beyond.rights[part]
        behind = (candidates if beyond is None else beyond.candidates) - rights
        places = _places(block, block_right, ties, rights, behind)
        asked = rights > 0
        first = places[:, 0] if places.shape[1] else rights
        found.ranks[part] = np.where(asked, first, 0)
        found.ndcg[part][asked] = _ndcg(places[asked], rights[asked])
    return found


def _places(
    scores: NDArray[np.floating[Any]],
    right: NDArray[np.bool_],
    ties: Ties,
    rights: NDArray[np.int64],
    wrongs: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the places, from 1, of the best right candidates of each query, best first: [Q, up to NDCG_DEPTH].

    A query has `rights` [Q] right and `wrongs` [Q] wrong candidates. A right one that is not listed comes after every wrong
    one. A place that a query has no right candidate for is meaningless.
    """
    depth = min(NDCG_DEPTH, int(rights.max(initial=0)))
    listed = right.sum(axis=1)
    order = (-scores).argsort(axis=1, kind="stable") if ties == "order" else None
    masked = np.where(right, scores, -np.inf)
    kept = min(depth, masked.shape[1])
    best = -np.sort(np.partition(-masked, kept - 1, axis=1)[:, :kept], axis=1) if kept else masked[:, :0]
    sorted_right = None if order is None else np.take_along_axis(right, order, 1)
    places = np.empty((len(scores), depth), np.int64)
    for number in range(depth):
        last = wrongs + number + 1
        if number >= kept:
            places[:, number] = last
            continue
        if sorted_right is None:
            place = number + 1 + ((scores >= best[:, number, None]) & ~right).sum(axis=1)
        else:
            place = 1 + (sorted_right.cumsum(axis=1) > number).argmax(axis=1)
        places[:, number] = np.where(listed > number, place, last)
    return places


def _ndcg(places: NDArray[np.int64], rights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return nDCG@10 from the `places` [Q, D] of the best right candidates and the number of right ones [Q]."""
    counted = (np.arange(places.shape[1]) < rights[:, None]) & (places <= NDCG_DEPTH)
    gains = np.where(counted, 1 / np.log2(places + 1.0), 0).sum(axis=1)
    ideal = (1 / np.log2(np.arange(NDCG_DEPTH) + 2.0)).cumsum()
    result: NDArray[np.float64] = gains / ideal[np.minimum(rights, NDCG_DEPTH) - 1]
    return result


def query_ranks(
    scores: NDArray[np.floating[Any]], right: NDArray[np.bool_], ties: Ties = "against"
) -> NDArray[np.int64]:
    """Return the rank of the best right candidate of each row, as `rank_queries` does: int64 [Q], 0 for a row without one."""
    return rank_queries(scores, right, ties).ranks


def rank_both_ways(scores: NDArray[np.floating[Any]], right: NDArray[np.bool_], ties: Ties = "against") -> QueryRanks:
    """Rank both ways from one score matrix: `scores` float [N pictures, C captions], `right` bool [N, C].

    A re-ranked shortlist has one matrix a direction: call `rank_queries` twice instead.
    Raises ValueError for NaN scores and for a caption without a right picture.
    """
    return both_ways(rank_queries(scores.T, right.T, ties), rank_queries(scores, right, ties))


def both_ways(to_images: Ranked, to_texts: Ranked) -> QueryRanks:
    """Put the two directions together: what captions [C] found among pictures, and what pictures [N] found among captions.

    Raises ValueError for a caption without a right picture.
    """
    if (to_images.ranks == 0).any():
        raise ValueError(f"caption {int(np.argmin(to_images.ranks))} has no right picture in the pool")
    return QueryRanks(to_images.ranks, to_texts.ranks, to_images.ndcg, to_texts.ndcg)


def recalls(found: QueryRanks) -> Recalls:
    """Return the six recalls and their mean, all in percent. Raises ValueError when a direction has no query."""
    text_to_image = _recall_at_cutoffs(found.text_to_image)
    image_to_text = _recall_at_cutoffs(found.image_to_text[found.image_to_text > 0])
    mean = float(np.mean([*text_to_image.values(), *image_to_text.values()]))
    return Recalls(text_to_image=text_to_image, image_to_text=image_to_text, mean_recall=mean)


def _recall_at_cutoffs(asked: NDArray[np.int64]) -> dict[str, float]:
    """Return R@1, R@5 and R@10 of ranks [Q], in percent."""
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
