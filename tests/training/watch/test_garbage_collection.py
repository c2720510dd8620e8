import gc

import pytest

from m3p.training.watch import garbage_collection as collector
from m3p.training.watch.garbage_collection import GarbageCollection


@pytest.mark.long
def test_the_collector_runs_at_fixed_steps_and_comes_back_in_the_end() -> None:
    seen: list[str] = []
    gc.callbacks.append(lambda phase, information: seen.append(phase))
    try:
        with GarbageCollection() as steps:
            seen.clear()
            for number in range(1, 2 * collector.EVERY + 1):
                [[] for _ in range(2000)]  # enough to start it, were it left alone
                steps.step(number)
            assert seen == ["start", "stop"] * 2
            assert not gc.isenabled()
    finally:
        gc.callbacks.pop()
    assert gc.isenabled()
