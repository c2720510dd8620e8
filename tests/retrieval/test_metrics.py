import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from m3p.keys import generator
from m3p.retrieval import metrics
from m3p.retrieval.metrics import QueryRanks, chance, query_ranks, rank_both_ways, recalls


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


def test_chance_agrees_with_random_scores() -> None:
    right = one_owner([0, 0, 1, 2, 2, 2, 5, 5], 30)
    right[10:13, 3] = True
    rng = generator("test", "chance")
    drawn = [recalls(rank_both_ways(rng.random(right.shape), right))["mean_recall"] for _ in range(4_000)]
    spread = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - chance(right)) < 4 * spread


def test_query_ranks_takes_candidates_in_columns() -> None:
    assert query_ranks(np.array([[1.0, 2.0, 3.0]]), np.array([[True, False, False]])).tolist() == [3]
