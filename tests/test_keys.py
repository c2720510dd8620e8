"""Of trainer/m3p/keys.py."""

from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p.keys import choose, draws, generator, hashes, key, keys_of, pick, splitmix64, uniform

OWNERS = st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 4), min_size=1, max_size=20, unique=True)


def test_keys_and_what_they_draw_stay_what_they_are() -> None:
    """Frozen: another value is another choice for every sample of every run."""
    assert key("a", 1) == 5981427342772527336
    assert key("a", 1) != key("a1")
    assert generator("a", 1).integers(0, 2**32, 3).tolist() == [3390836361, 307660988, 3005888473]
    assert [int(draw * 2**32) for draw in islice(draws("a", 1), 7, 10)] == [3065646354, 3655436838, 1708790942]
    owners = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.uint64)
    assert keys_of(owners, "mask").tolist() == [4277277621917563524, 4613785715744594819]
    drawn = hashes(np.array([1, 1, 2], np.uint64), np.array([0, 1, 0]))
    assert drawn.tolist() == [627405149472732430, 16860738450190168606, 15549969042648332857]
    # The published generator's outputs of the seed 0 begin with 0xE220A8397B1DCDAF.
    assert splitmix64(np.arange(2, dtype=np.uint64)).tolist() == [0xE220A8397B1DCDAF, 10451216379200822465]


@given(OWNERS)
def test_each_owner_has_a_key_of_its_own_whoever_else_is_asked_for(owners: list[tuple[int, ...]]) -> None:
    table = np.array(owners, np.uint64)
    together = keys_of(table, "mask")
    assert len(set(together.tolist())) == len(owners)
    assert together.tolist() == [int(keys_of(table[number : number + 1], "mask")[0]) for number in range(len(owners))]
    assert set(together.tolist()).isdisjoint(keys_of(table, "switch").tolist())


def test_equal_columns_do_not_cancel() -> None:
    same = np.array([[5, 5, 1, 2], [6, 6, 1, 2], [1, 2, 5, 5]], np.uint64)
    assert len(set(keys_of(same, "mask").tolist())) == 3


def test_numbers_of_neighbouring_keys_and_places_are_even_and_unrelated() -> None:
    keys = keys_of(np.stack([np.zeros(200), np.zeros(200), np.arange(200), np.zeros(200)], 1).astype(np.uint64), "mask")
    numbers = hashes(np.repeat(keys, 100), np.tile(np.arange(100), 200))
    for drawn in (uniform(numbers), uniform(splitmix64(numbers)), uniform(splitmix64(splitmix64(numbers)))):
        assert 0 <= drawn.min() <= drawn.max() < 1
        counts = np.histogram(drawn, 20, (0, 1))[0]
        assert np.square(counts - 1000).sum() / 1000 < 45  # chi-squared of 19: above it once in 1,000
    table = uniform(numbers).reshape(200, 100)
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(table[:, :-1].ravel(), table[:, 1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(uniform(numbers), uniform(splitmix64(numbers)))[0, 1]) < 0.03


def test_draws_are_even_and_unrelated_within_a_sample_and_across_samples() -> None:
    table = np.array([list(islice(draws("sample", number), 20)) for number in range(1_000)])
    assert 0 <= table.min() <= table.max() < 1
    counts = np.histogram(table, 20, (0, 1))[0]
    assert np.square(counts - 1000).sum() / 1000 < 45  # chi-squared of 19: above it once in 1,000
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(table[:, :-8].ravel(), table[:, 8:].ravel())[0, 1]) < 0.03, "of one block and the next"


def test_each_item_is_picked_as_often() -> None:
    found = Counter(pick("abc", draw) for draw in islice(draws("pick"), 30_000))
    assert all(found[item] / 30_000 == pytest.approx(1 / 3, abs=0.01) for item in "abc")
    assert pick("abc", 0.0) == "a"
    assert pick("abc", 1 - 2**-53) == "c"


@given(st.lists(st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), max_size=6), max_size=6))
def test_of_a_run_without_a_low_coin_the_lowest_is_chosen_and_never_a_barred_one(runs: list[list[float]]) -> None:
    coins, lengths = np.array(list(chain.from_iterable(runs))), np.array([len(run) for run in runs], np.int64)
    ends = lengths.cumsum()
    found = choose(coins, lengths, 0.5).tolist()
    for run, first, end in zip(runs, ends - lengths, ends, strict=True):
        mine = [place - first for place in found if first <= place < end]
        low = [place for place, coin in enumerate(run) if coin < 0.5]
        if low:
            assert mine == low
        elif any(coin < 1 for coin in run):
            assert mine == [run.index(min(run))]
        else:
            assert mine == []
