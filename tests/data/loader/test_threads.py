import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator

import pytest

from m3p.data.loader.threads import ahead, set_threads, share
from tests.launch import ROOT


@pytest.fixture(autouse=True)
def _one_thread_afterwards() -> Iterator[None]:
    yield
    set_threads(1)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 17])
def test_every_part_is_done_once(threads: int, count: int) -> None:
    set_threads(threads)
    found = [0] * count

    def work(part: range) -> None:
        for number in part:
            found[number] += number + 1

    share(work, count)
    assert found == [number + 1 for number in range(count)]


def test_threads_share_the_work() -> None:
    set_threads(3)
    meet = threading.Barrier(3, timeout=10)
    met: list[int] = []
    share(lambda part: met.append(meet.wait()), 6)  # none comes through alone
    assert sorted(met) == [0, 1, 2]


def test_an_exception_of_a_part_arrives_when_all_have_ended() -> None:
    set_threads(2)
    done: list[int] = []

    def work(part: range) -> None:
        if 1 in part:
            raise KeyError("one")
        time.sleep(0.1)
        done.extend(part)

    with pytest.raises(KeyError):
        share(work, 4)
    assert done == [0, 2]


def test_the_number_of_threads_belongs_to_a_thread() -> None:
    set_threads(2)
    seen: list[range] = []
    other = threading.Thread(target=share, args=(seen.append, 4))
    other.start()
    other.join()
    assert seen == [range(4)]


def numbers(closed: list[bool], last: int = 100) -> Generator[int, None, None]:
    try:
        yield from range(last)
        raise ValueError("behind the last")
    finally:
        closed.append(True)


def test_ahead_yields_all_in_order_and_then_what_went_wrong() -> None:
    items = ahead(numbers([], 30), 3)
    assert [next(items) for _ in range(30)] == list(range(30))
    with pytest.raises(ValueError, match="behind the last"):
        next(items)


def test_who_stops_taking_ends_the_thread() -> None:
    closed: list[bool] = []
    items = ahead(numbers(closed), 3)
    assert [next(items), next(items)] == [0, 1]
    items.close()  # type: ignore[attr-defined]
    assert closed == [True]
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


ENDS = """
from m3p.data.loader.threads import ahead
def items():
    try:
        yield from range(10**9)
    finally:
        print("closed")
taken = ahead(items(), 2)
print(next(taken))
"""


@pytest.mark.program
def test_no_thread_runs_into_the_end_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "closed"]
