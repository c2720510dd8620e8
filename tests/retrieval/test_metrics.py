import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from m3p.keys import generator
from m3p.retrieval import metrics
from m3p.retrieval.metrics import Beyond, QueryRanks, chance, query_ranks, rank_both_ways, rank_queries, recalls


def one_owner(owners: list[int], images: int) -> NDArray[np.bool_]:
    return np.arange(images)[:, None] == np.array(owners)[None, :]


def test_the_vector_of_the_protocol() -> None:
    scores = np.array([[0.9, 0.2, 0.8, 0.1, 0.3], [0.7, 0.6, 0.1, 0.95, 0.2]])
    found = rank_both_ways(scores, one_owner([0, 0, 1, 1, 1], 2))
    assert found.text_to_image.tolist() == [1, 2, 2, 1, 2]
    assert found.image_to_text.tolist() == [1, 1]
    table = recalls(found)
    assert table["text_to_image"]["R@1"] == pytest.approx(40)
    assert table["image_to_text"]["R@1"] == 100
    assert table["mean_recall"] == pytest.approx((40 + 5 * 100) / 6)


def test_ties_count_against_the_system() -> None:
    found = rank_both_ways(np.zeros((20, 20)), np.eye(20, dtype=bool))
    assert set(found.text_to_image.tolist()) == set(found.image_to_text.tolist()) == {20}
    assert recalls(found)["mean_recall"] == 0


def test_other_right_answers_never_push_a_rank_down() -> None:
    right = np.array([[True], [True], [False]])
    assert rank_both_ways(np.array([[0.5], [0.5], [0.4]]), right).text_to_image.tolist() == [1]


def literal_rank(scores: list[float], right: list[bool]) -> int:
    """The definition of the protocol, read aloud."""
    best = max(score for score, is_right in zip(scores, right, strict=True) if is_right)
    return 1 + sum(1 for score, is_right in zip(scores, right, strict=True) if not is_right and score >= best)


@st.composite
def tables(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    images, captions = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    few = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0])  # few values, so that ties are common
    scores = draw(st.lists(st.lists(few, min_size=captions, max_size=captions), min_size=images, max_size=images))
    rights = draw(
        st.lists(st.lists(st.booleans(), min_size=captions, max_size=captions), min_size=images, max_size=images)
    )
    right = np.array(rights)
    for caption in np.flatnonzero(~right.any(axis=0)):
        right[draw(st.integers(0, images - 1)), caption] = True
    return np.array(scores), right


@pytest.mark.long
@given(tables(), st.sampled_from([1, 3, 1 << 22]))
@settings(max_examples=150, deadline=None)
def test_agrees_with_the_literal_reading_at_any_block_size(
    table: tuple[NDArray[np.float64], NDArray[np.bool_]], block: int
) -> None:
    scores, right = table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_BLOCK", block)
        found = rank_both_ways(scores, right)
    for caption in range(scores.shape[1]):
        expected = literal_rank(scores[:, caption].tolist(), right[:, caption].tolist())
        assert found.text_to_image[caption] == expected
    for image in range(scores.shape[0]):
        asked = right[image].any()
        assert found.image_to_text[image] == (
            literal_rank(scores[image].tolist(), right[image].tolist()) if asked else 0
        )


def test_nan_is_refused_wherever_it_is() -> None:
    scores = np.zeros((3, 3))
    scores[2, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        rank_both_ways(scores, np.eye(3, dtype=bool))


def test_a_caption_without_a_right_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="caption 1 has no right picture"):
        rank_both_ways(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


def test_a_picture_without_a_caption_is_no_query() -> None:
    found = rank_both_ways(np.array([[0.5], [0.9]]), np.array([[True], [False]]))
    assert found.text_to_image.tolist() == [2], "it stays in the gallery"
    assert found.image_to_text.tolist() == [1, 0]
    assert recalls(found)["image_to_text"]["R@1"] == 100


def test_recalls_without_a_query_are_refused() -> None:
    with pytest.raises(ValueError, match="no query"):
        recalls(QueryRanks(np.array([1]), np.array([0])))


def test_chance_of_one_caption_each() -> None:
    assert chance(np.eye(100, dtype=bool)) == pytest.approx((1 + 5 + 10) / 3)


def test_chance_of_a_small_pool_is_certain_beyond_its_size() -> None:
    assert chance(np.eye(2, dtype=bool)) == pytest.approx(100 * (0.5 + 1 + 1) / 3)


@pytest.mark.long
def test_chance_agrees_with_random_scores() -> None:
    right = one_owner([0, 0, 1, 2, 2, 2, 5, 5], 30)
    right[10:13, 3] = True
    rng = generator("test", "chance")
    drawn = [recalls(rank_both_ways(rng.random(right.shape), right))["mean_recall"] for _ in range(4_000)]
    spread = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - chance(right)) < 4 * spread


def test_query_ranks_takes_candidates_in_columns() -> None:
    assert query_ranks(np.array([[1.0, 2.0, 3.0]]), np.array([[True, False, False]])).tolist() == [3]


def trec(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[list[float], list[float]]:
    """nDCG@10 and hit@1 of each query that has a right candidate, by trec_eval.

    trec_eval puts the larger name first where scores are equal, so wrong candidates get larger ones: ties against the system.
    """
    names = [[f"{'a' if good else 'z'}{place}" for place, good in enumerate(row)] for row in right]
    wanted = {str(n): {name: 1 for name in names[n] if name[0] == "a"} for n in range(len(right)) if right[n].any()}
    run = {query: dict(zip(names[int(query)], scores[int(query)].tolist(), strict=True)) for query in wanted}
    found = pytrec_eval.RelevanceEvaluator(wanted, {"ndcg_cut.10", "success.1"}).evaluate(run)
    return [found[query]["ndcg_cut_10"] for query in wanted], [found[query]["success_1"] for query in wanted]


@given(tables())
def test_ndcg_and_hits_are_those_of_trec_eval(table: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> None:
    scores, right = table
    scores = np.maximum(scores, -9.0)  # trec_eval has no infinity
    for given_scores, given_right in ((scores, right), (scores.T, right.T)):
        found, asked = rank_queries(given_scores, given_right), given_right.any(axis=1)
        ndcg, hits = trec(given_scores, given_right)
        np.testing.assert_allclose(found.ndcg[asked], ndcg, atol=1e-9)
        assert (found.ranks[asked] == 1).astype(float).tolist() == hits
        assert np.isnan(found.ndcg[~asked]).all()


@given(st.integers(11, 40), st.integers(1, 30), st.integers(0, 2**31))
def test_ndcg_of_large_pools_with_many_right_answers_is_that_of_trec_eval(size: int, rights: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, (3, size)).astype(float)
    right = np.array([rng.permutation(size) < min(rights, size) for _ in range(3)])
    np.testing.assert_allclose(rank_queries(scores, right).ndcg, trec(scores, right)[0], atol=1e-9)


@given(tables())
def test_ties_by_order_take_the_candidate_with_the_lower_number_first(
    table: tuple[NDArray[np.float64], NDArray[np.bool_]],
) -> None:
    scores, right = table
    found = query_ranks(scores, right, "order")
    for row, good, rank in zip(scores, right, found.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda place: (-row[place], place))
        first = next((n for n, place in enumerate(order, start=1) if good[place]), 0)
        assert rank == first


@given(tables(), st.integers(1, 7), st.integers(0, 2**31))
def test_a_shortlist_ranks_as_if_all_else_scored_minus_infinity(
    table: tuple[NDArray[np.float64], NDArray[np.bool_]], limit: int, seed: int
) -> None:
    scores, right = np.maximum(table[0], -9.0), table[1]
    rng = np.random.default_rng(seed)
    listed = np.stack([rng.permutation(scores.shape[1])[:limit] for _ in scores])
    whole = np.full(scores.shape, -np.inf)
    np.put_along_axis(whole, listed, np.take_along_axis(scores, listed, 1), 1)
    beyond = Beyond(right.sum(axis=1), right.shape[1])
    short = rank_queries(np.take_along_axis(scores, listed, 1), np.take_along_axis(right, listed, 1), "against", beyond)
    long = rank_queries(whole, right)
    assert short.ranks.tolist() == long.ranks.tolist()
    np.testing.assert_allclose(short.ndcg, long.ndcg)
