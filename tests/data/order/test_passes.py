from fractions import Fraction

import pytest

from m3p.data.order.passes import Passes
from m3p.data.order.plan import Plan, Stream

PLAN = Plan([Stream("text", 2, 6), Stream("pairs", 1, 6)], None)
ORDER = [turn.objective for turn in PLAN.turns(0)]


@pytest.mark.parametrize(
    ("shares", "groups"),
    [
        ({}, [1, 1, 1]),
        ({"text": "1/3", "pairs": "1/3"}, [3]),
        ({"text": "1/2", "pairs": "1/2"}, [2, 1]),
        ({"text": "1/4", "pairs": "1"}, [1, 1, 1]),
        ({"text": "1/4"}, [1, 1, 1]),  # a turn of pairs is several micro-batches
    ],
)
def test_turns_that_fit_one_micro_batch_are_one_pass(shares: dict[str, str], groups: list[int]) -> None:
    assert ORDER == ["text", "pairs", "text"]
    passes = Passes(PLAN, {name: Fraction(share) for name, share in shares.items()}).of_step(2)
    assert [len(one.turns) for one in passes] == groups
    assert [turn for one in passes for turn in one.turns] == PLAN.turns(1)
    assert [one.last for one in passes] == [False] * (len(groups) - 1) + [True]
    assert {one.step for one in passes} == {2}
