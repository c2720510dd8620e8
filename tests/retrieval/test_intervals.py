import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from m3p.keys import generator
from m3p.retrieval import intervals
from m3p.retrieval.intervals import GroupedRanks, difference_interval, mean_recall_interval
from m3p.retrieval.metrics import QueryRanks, recalls


def grouped(text_to_image: NDArray[np.int64], image_to_text: NDArray[np.int64]) -> GroupedRanks:
    """One caption a picture."""
    return GroupedRanks(
        QueryRanks(text_to_image, image_to_text), np.arange(len(image_to_text)), np.arange(len(text_to_image))
    )


def random_ranks(name: str, size: int = 100) -> GroupedRanks:
    rng = generator("test", name)
    return grouped(rng.geometric(0.1, size), rng.geometric(0.1, size))


def test_the_value_is_the_mean_recall() -> None:
    one, two = random_ranks("one"), random_ranks("two")
    expected = [recalls(each.ranks)["mean_recall"] for each in (one, two)]
    assert mean_recall_interval({"en": one}).value == pytest.approx(expected[0])
    found = mean_recall_interval({"en": one, "de": two})
    assert found.value == pytest.approx(np.mean(expected))
    assert found.low < found.value < found.high


@given(st.integers(2, 30), st.integers(1, 3), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_the_value_is_the_mean_recall_whatever_the_groups(concepts: int, languages: int, key: int) -> None:
    rng = generator("test", "groups", key)
    image_groups = rng.integers(concepts, size=2 * concepts)
    table = {}
    for language in range(languages):
        owners = rng.choice(image_groups, size=concepts)
        asks = np.isin(image_groups, owners)
        found = QueryRanks(
            rng.integers(1, 15, size=concepts), np.where(asks, rng.integers(1, 15, size=2 * concepts), 0)
        )
        table[str(language)] = GroupedRanks(found, image_groups, owners)
    expected = np.mean([recalls(each.ranks)["mean_recall"] for each in table.values()])
    assert mean_recall_interval(table).value == pytest.approx(expected)


def slow_resamples(table: dict[str, GroupedRanks], seed: int) -> list[float]:
    """Draw concepts, list every query about them as often as drawn, take recalls of the list."""
    groups = len(np.unique(next(iter(table.values())).image_groups))
    rng = generator("bootstrap", seed)
    values = []
    for chosen in rng.integers(groups, size=(intervals.RESAMPLES, groups)):
        means = []
        for each in table.values():
            texts = np.concatenate([each.ranks.text_to_image[each.caption_groups == group] for group in chosen])
            images = np.concatenate([each.ranks.image_to_text[each.image_groups == group] for group in chosen])
            means.append(recalls(QueryRanks(texts, images))["mean_recall"])
        values.append(float(np.mean(means)))
    return values


def test_agrees_with_a_slow_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    rng = generator("test", "slow")
    table = {}
    for language, captions in (("en", 2), ("de", 1)):
        owners = np.repeat(np.arange(12), captions)
        table[language] = GroupedRanks(
            QueryRanks(rng.geometric(0.2, 12 * captions), rng.geometric(0.2, 24)), np.arange(24) // 2, owners
        )
    values = slow_resamples(table, seed=3)
    found = mean_recall_interval(table, seed=3)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"en": random_ranks("blocks")}
    whole = mean_recall_interval(table)
    monkeypatch.setattr(intervals, "_BLOCK", 701)
    assert mean_recall_interval(table) == whole


def test_languages_that_stand_and_fall_together_do_not_narrow_the_interval() -> None:
    one = random_ranks("together")
    alone, together = mean_recall_interval({"en": one}), mean_recall_interval({"en": one, "de": one})
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    apart = mean_recall_interval({"en": one, "de": random_ranks("apart")})
    assert apart.high - apart.low < alone.high - alone.low


def test_covers_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 300)
    truth = np.mean([100 * (1 - 0.95**k) for k in (1, 5, 10)])
    covered = []
    for trial in range(200):
        rng = generator("test", "coverage", trial)
        both = rng.geometric(0.05, 100)  # a picture as hard as its caption: drawing them apart would cover about 84 %
        found = mean_recall_interval({"en": grouped(both, both)}, seed=trial)
        covered.append(found.low <= truth <= found.high)
    assert 0.90 <= np.mean(covered) <= 0.98


def test_the_same_system_differs_by_nothing() -> None:
    one = {"en": random_ranks("same")}
    found = difference_interval(one, one)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert found.holds_zero


def test_pairing_sees_a_small_steady_gain() -> None:
    base = random_ranks("steady")
    better = grouped(np.maximum(1, base.ranks.text_to_image - 1), np.maximum(1, base.ranks.image_to_text - 1))
    found = difference_interval({"en": better}, {"en": base})
    a, b = mean_recall_interval({"en": better}), mean_recall_interval({"en": base})
    assert found.value == pytest.approx(a.value - b.value)
    assert a.low < b.high, "apart, the two intervals overlap"
    assert not found.holds_zero
    back = difference_interval({"en": base}, {"en": better})
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_other_queries_are_refused() -> None:
    one, two = random_ranks("one", 10), random_ranks("two", 10)
    moved = GroupedRanks(two.ranks, two.image_groups, two.caption_groups[::-1])
    with pytest.raises(AssertionError, match="other queries"):
        difference_interval({"en": one}, {"en": moved})


def test_a_rare_language_leaves_no_hole() -> None:
    rare = GroupedRanks(QueryRanks(np.array([1]), np.array([1] + [0] * 99)), np.arange(100), np.array([0]))
    assert mean_recall_interval({"xx": rare}).value == 100
    found = mean_recall_interval({"en": random_ranks("en"), "xx": rare})
    assert np.isfinite([found.low, found.high]).all()


def test_two_thousand_resamples_of_a_hundred_take_under_a_second() -> None:
    table = {str(language): random_ranks(str(language)) for language in range(6)}
    start = time.process_time()
    mean_recall_interval(table)
    assert time.process_time() - start < 1
