import hashlib
import pickle
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from m3p.data.order.shuffle import ORDER_VERSION, Places, SourceOrder, permutation
from m3p.keys import key

Counts = st.lists(st.integers(0, 12), min_size=1, max_size=30).filter(any)


def numbers(places: Places, counts: list[int]) -> NDArray[np.int64]:
    """Number the places through the whole source: a permutation of 0..samples-1 where the order is right."""
    firsts = np.cumsum([0, *counts])[:-1]
    assert (places.sample < np.array(counts)[places.shard]).all()
    return firsts[places.shard] + places.sample


def correlation(left: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    return float(np.corrcoef(left, right)[0, 1])


@pytest.mark.long
@given(counts=Counts, window=st.integers(1, 9), name=st.integers(0, 2**64 - 1), epoch=st.sampled_from([0, 1, 10**10]))
@settings(max_examples=150, deadline=None)
def test_every_epoch_visits_every_sample_exactly_once(counts: list[int], window: int, name: int, epoch: int) -> None:
    order = SourceOrder(counts, window, name)
    places = order.locate(np.arange(order.samples) + epoch * order.samples)
    assert (places.epoch == epoch).all()
    assert sorted(numbers(places, counts).tolist()) == list(range(sum(counts)))


@pytest.mark.long
@given(
    counts=Counts,
    window=st.integers(1, 9),
    positions=st.lists(st.one_of(st.integers(0, 500), st.integers(2**32 - 5, 2**50)), max_size=20),
)
@settings(max_examples=150, deadline=None)
def test_many_positions_in_any_order_lie_where_each_one_does(
    counts: list[int], window: int, positions: list[int]
) -> None:
    places = SourceOrder(counts, window, 1).locate(np.array(positions, np.int64))
    alone = SourceOrder(counts, window, 1)
    assert list(zip(*(array.tolist() for array in places), strict=True)) == [alone.place(p) for p in positions]


def test_the_order_is_frozen() -> None:
    """Experiments that are running depend on it: whoever changes this hash raises ORDER_VERSION."""
    digest = hashlib.blake2b(digest_size=16)
    sources = [
        ([10_000] * 40, 4, 0),
        ([7, 0, 3, 11, 5], 2, 10**12),
        ([1000 + i % 77 for i in range(300)], 3, 2**32 - 5),
    ]
    for number, (counts, window, first) in enumerate(sources):
        order = SourceOrder(counts, window, key(17, "order", number))
        length = 4_000 if number == 1 else 198_000
        for array in order.locate(np.arange(first, first + length)):
            digest.update(array.astype("<i8").tobytes())
    assert (ORDER_VERSION, digest.hexdigest()) == (1, "95829a03f7d3ef7d6220cf8de0dfb567")


def test_permutation_is_the_one_that_plain_integers_give() -> None:
    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    name = key("some order")
    hashes = [mix(mix(index) ^ name) >> 9 for index in range(400)]
    assert permutation(400, name).tolist() == sorted(range(400), key=lambda index: (hashes[index], index))


@given(size=st.integers(1, 3000), name=st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_permutation_is_a_bijection(size: int, name: int) -> None:
    assert np.array_equal(np.sort(permutation(size, name)), np.arange(size))


@pytest.mark.parametrize("size", [1_000, 65_537, 300_000])
def test_permutation_looks_random(size: int) -> None:
    noise = 4.5 / size**0.5
    for name in (0, 1, 2, key("x")):
        order = permutation(size, name).astype(np.int64)
        assert abs(correlation(order[:-1], order[1:])) < noise
        assert abs(correlation(order, np.arange(size))) < noise
        assert abs(correlation(order, permutation(size, name + 1).astype(np.int64))) < noise
        # A table of 16 parts of the range by 16 parts of the order is as even as a full shuffle leaves it.
        table, _, _ = np.histogram2d(np.arange(size), order, bins=16)
        expected = size / 256
        assert 120 < ((table - expected) ** 2 / expected).sum() < 350  # chi-square with 225 degrees of freedom


def test_all_orders_of_a_tiny_range_are_equally_likely() -> None:
    seen = np.unique([permutation(3, key("tiny", i)) @ [9, 3, 1] for i in range(6_000)], return_counts=True)[1]
    assert len(seen) == 6
    assert abs(seen - 1_000).max() < 150


def test_windowed_shuffle_spreads_like_a_full_one_except_for_its_windows() -> None:
    counts, window = [500] * 200, 4
    order = SourceOrder(counts, window, key("spread"))
    places = order.locate(np.arange(order.samples))
    found = numbers(places, counts)
    # Displacement: a full shuffle moves a sample by a third of the source on average.
    assert abs(np.abs(found - np.arange(len(found))).mean() / len(found) - 1 / 3) < 0.03
    # Neighbours: inside a shard as unrelated as in a full shuffle.
    assert abs(correlation(places.sample[:-1], places.sample[1:])) < 0.015
    # Each window reads its four shards, evenly through its whole length: any quarter holds a quarter of each.
    for of_window in places.shard.reshape(-1, window * 500):
        shards, quarters = np.unique(of_window), of_window.reshape(4, 500)
        assert len(shards) == window
        assert all(75 < (quarter == shard).sum() < 175 for quarter in quarters for shard in shards)


def test_epochs_differ_and_keys_are_no_sums() -> None:
    counts = [5] * 2_000
    found = {
        (seed, epoch): numbers(SourceOrder(counts, 4, key(seed)).locate(np.arange(10_000) + 10_000 * epoch), counts)
        for seed in (5, 6)
        for epoch in (0, 1)
    }
    names = list(found)
    for number, left in enumerate(names):
        for right in names[:number]:
            assert abs(correlation(found[left], found[right])) < 0.2  # 500 windows: noise of 0.045
            assert (found[left] == found[right]).mean() < 0.01


def test_a_billion_samples_in_little_memory_and_a_far_position_as_fast_as_the_first() -> None:
    counts = np.full(100_000, 10_000)

    def seconds(first: int) -> float:
        def once() -> float:
            start = time.process_time()
            for position in range(first, first + 1_000):
                order.place(position)
            order.locate(np.arange(first, first + 50_000))
            return time.process_time() - start

        return min(once() for _ in range(3))

    tracemalloc.start()
    try:
        order = SourceOrder(counts, 4, key("large"))
        for position in np.random.default_rng(0).integers(0, 10**12, 30).tolist():
            order.place(position)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert order.samples == 10**9
    assert peak < 30e6
    assert seconds(10**12) < 3 * seconds(0) + 0.005


def test_an_order_travels_to_a_spawned_worker() -> None:
    order = SourceOrder([3, 4, 5], 2, 9)
    order.place(5)
    assert pickle.loads(pickle.dumps(order)).place(10**10) == order.place(10**10)
