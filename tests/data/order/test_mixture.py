import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3p.data.order.mixture import BLOCK, MixtureOrder, _table, block_counts, temperature_weights

Weights = st.lists(st.integers(1, 60), min_size=1, max_size=12)


def test_the_sequence_is_the_one_of_nginx() -> None:
    shares = MixtureOrder([5, 1, 1])
    assert [shares.place(p).source for p in range(14)] == [0, 0, 1, 0, 2, 0, 0] * 2


@pytest.mark.long
@given(weights=Weights)
@settings(max_examples=60, deadline=None)
def test_positions_in_a_source_count_up_and_shares_are_exact_and_smooth(weights: list[int]) -> None:
    shares, total = MixtureOrder(weights), sum(weights)
    seen = [0] * len(weights)
    behind = sum(1 / (i + 1) for i in range(len(weights)))
    for position in range(2 * shares.block + 3):
        source, of_source = shares.place(position)
        assert of_source == seen[source]
        seen[source] += 1
        for count, weight in zip(seen, weights, strict=True):
            exact = (position + 1) * weight / total
            assert exact - behind - 1e-9 <= count < exact + 1
        if (position + 1) % shares.block == 0:
            assert [Fraction(n, position + 1) for n in seen] == [Fraction(w, total) for w in weights]


@given(weights=Weights, positions=st.lists(st.integers(0, 2**45), max_size=20))
@settings(max_examples=60, deadline=None)
def test_many_positions_lie_where_each_one_does(weights: list[int], positions: list[int]) -> None:
    shares = MixtureOrder(weights)
    sources, of_source = shares.locate(np.array(positions, np.int64))
    assert list(zip(sources.tolist(), of_source.tolist(), strict=True)) == [shares.place(p) for p in positions]


@pytest.mark.long
@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([0.7, 0.2, 0.1], (7, 2, 1)),
        (["1/3", "2/3"], (1, 2)),
        (["0.5", 0.25, 1], (2, 1, 4)),
        ([1_000_000, 2_000_000], (1, 2)),
        ([42], (1,)),
        ([BLOCK - 1, 1], (BLOCK - 1, 1)),
        ([BLOCK, 1], (BLOCK - 1, 1)),
        ([1e12, 1e-12, 1], (BLOCK - 2, 1, 1)),
        ([2 / 3, 1 / 3], (2, 1)),
        ([0.33333, 0.66667], (21_845, 43_691)),
    ],
)
def test_counts_of_a_block(weights: list[str | int | float], counts: tuple[int, ...]) -> None:
    assert MixtureOrder(weights).counts == counts


@given(weights=st.lists(st.integers(1, 10**9), min_size=2, max_size=60).map(lambda w: [*w, BLOCK * 10**9 + 7]))
def test_rounded_counts_fill_a_block_and_keep_every_source(weights: list[int]) -> None:
    counts = block_counts([Fraction(weight) for weight in weights])
    assert sum(counts) == BLOCK
    assert min(counts) == 1


@given(weights=st.lists(st.integers(10**6, 10**7), min_size=2, max_size=60))
def test_rounding_is_by_less_than_one_position_where_no_source_is_tiny(weights: list[int]) -> None:
    counts = block_counts([Fraction(weight, 10**7 + 19) for weight in weights])
    length = sum(counts)
    exact = [Fraction(weight * length, sum(weights)) for weight in weights]
    assert all(abs(count - share) < 1 for count, share in zip(counts, exact, strict=True))


def test_a_source_without_weight_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        MixtureOrder([1, 0])


def test_the_longest_table_of_100_sources_is_made_in_half_a_second() -> None:
    weights = np.random.default_rng(0).pareto(1, 100).tolist()
    _table.cache_clear()
    start = time.process_time()
    shares = MixtureOrder(weights)
    assert time.process_time() - start < 0.5
    assert (shares.block, min(shares.counts)) == (BLOCK, 1)


def test_temperature_weights() -> None:
    assert temperature_weights([70, 20, 10], 0.3) == pytest.approx([0.4455, 0.3060, 0.2485], abs=5e-5)
    assert temperature_weights([70, 20, 10], 1.0) == [0.7, 0.2, 0.1]
    assert temperature_weights([70, 20, 10, 1], 0.0) == [0.25] * 4
