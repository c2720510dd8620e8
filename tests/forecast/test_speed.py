import pytest

from m3p.forecast.speed import EFFICIENCY, MEASURED, bus_bandwidth, efficiency, pair_seconds
from m3p.model.flops import GPUS

KINDS = {gpu.name: gpu for gpu in GPUS}


def test_what_was_measured_stands_and_slower_memory_lowers_it() -> None:
    assert efficiency(MEASURED) == EFFICIENCY
    # By a quarter of the excess of peak over bandwidth: an H100 has 3.35 TB/s where an H200 has 4.8, and the same peak.
    assert efficiency(KINDS["H100"]) == pytest.approx(EFFICIENCY / (1 + 0.25 * (4.8 / 3.35 - 1)))
    assert all(0.2 < efficiency(kind) < 0.4 for kind in GPUS)


def test_cards_bound_sums_beyond_a_node() -> None:
    assert bus_bandwidth(KINDS["H200"], 8) == pytest.approx(360e9)
    assert bus_bandwidth(KINDS["H200"], 9) == pytest.approx(340e9)
    assert bus_bandwidth(KINDS["L40S"], 8) == bus_bandwidth(KINDS["L40S"], 16)


def test_few_pairs_are_computed_whole_by_every_rank_and_many_shared() -> None:
    kind, size = KINDS["H200"], 768
    few, many = (pair_seconds(pairs, size, 1, kind) for pairs in (4096, 4097))
    assert few == pytest.approx(4 * 4096**2 * 2 * size / (0.5 * 67e12))
    assert pair_seconds(4096, size, 64, kind) > few  # and features are sent
    assert pair_seconds(4097, size, 64, kind) < many / 2
