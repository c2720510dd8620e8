import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from m3p.optim.schedules import SHAPES, ScheduleConfig, share_of_peak


@pytest.mark.parametrize(("step", "rate"), [(4000, 1e-4), (16000, 5e-5), (40000, 3.162e-5)])
def test_inverse_sqrt_gives_the_rates_of_m3p(step: int, rate: float) -> None:
    config = ScheduleConfig(shape="inverse_sqrt", warmup_steps=4000)
    assert 1e-4 * share_of_peak(step - 1, 100_000, config) == pytest.approx(rate, rel=1e-3)


def test_the_warm_up_is_a_line_from_zero() -> None:
    config = ScheduleConfig(shape="cosine", warmup_steps=4)
    assert [share_of_peak(step, 10, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_wsd_is_flat_and_then_falls_to_its_end() -> None:
    config = ScheduleConfig(shape="wsd", decay=0.25, final=0.1)
    shares = [share_of_peak(step, 8, config) for step in range(8)]
    assert shares[:6] == [1.0] * 6
    assert shares[6:] == pytest.approx([0.55, 0.1])


@given(st.sampled_from(sorted(SHAPES)), st.integers(1, 300), st.data())
def test_shares_stay_in_bounds_and_never_grow_after_the_warm_up(shape: str, steps: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    final = data.draw(st.floats(0, 1))
    config = ScheduleConfig(shape=shape, warmup_steps=warmup, final=final)
    shares = [share_of_peak(step, steps, config) for step in range(steps)]
    assert all(0 <= share <= 1 + 1e-12 for share in shares)
    after = shares[warmup:]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))
    if shape in ("cosine", "linear", "wsd"):
        assert math.isclose(shares[-1], final, abs_tol=1e-9)


def test_an_unknown_shape_names_those_there_are() -> None:
    with pytest.raises(ValidationError, match="choose one of inverse_sqrt, cosine, linear, wsd, constant"):
        ScheduleConfig(shape="triangle")
