import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from m3p.data.loader.workers import Workers
from m3p.errors import OneRankError, UserError
from tests.launch import ROOT


def workers(number: int, make: Callable[[int], object], numbers: range = range(20)) -> "Workers[object]":
    return Workers(number, numbers, 2, lambda worker: None, make)


@pytest.mark.long
@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_results_come_in_order_whatever_the_number_of_workers(number: int) -> None:
    assert list(workers(number, lambda n: (n, os.getpid() != 0)).results()) == [(n, True) for n in range(20)]


def test_a_result_larger_than_a_pipe() -> None:
    assert [len(found) for found in workers(2, lambda n: bytes(3_000_000 + n), range(4)).results()] == [  # type: ignore[arg-type]
        3_000_000 + n for n in range(4)
    ]


def test_no_more_is_computed_than_was_asked_for() -> None:
    made = workers(1, lambda n: (n, time.monotonic()), range(10))
    results = made.results()
    next(results)
    time.sleep(0.5)
    slept = time.monotonic()
    times = [found[1] for found in results]  # type: ignore[index]
    assert sum(when < slept for when in times) == 3  # two lie ready, one waits to
    results.close()  # type: ignore[attr-defined]


def test_mistakes_arrive_at_their_place_as_what_they_are() -> None:
    def make(number: int) -> int:
        if number == 3:
            raise UserError("mend it")
        return 1 // (5 - number)

    results = workers(2, make).results()
    assert [next(results) for _ in range(3)] == [0, 0, 0]
    with pytest.raises(OneRankError, match=r"^mend it$"):
        next(results)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(workers(1, lambda n: 1 // (n - 2)).results())


def test_the_death_of_a_worker_is_said() -> None:
    results = workers(2, lambda n: os.getpid(), range(1000)).results()
    pids = [next(results), next(results)]
    os.kill(pids[1], signal.SIGKILL)  # type: ignore[arg-type]
    with pytest.raises(OneRankError, match=rf"data worker {pids[1]} has died \(exit code -9"):
        list(results)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_all_workers_end_with_the_iterator() -> None:
    results = workers(3, lambda n: os.getpid(), range(1000)).results()
    pids = {next(results) for _ in range(6)}
    assert len(pids) == 3
    results.close()  # type: ignore[attr-defined]
    assert not any(psutil.pid_exists(pid) for pid in pids)


PROGRAM = """
import os, signal, sys, time
from m3p.data.loader.workers import Workers
def start(worker):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
found = Workers(2, range(1000), 2, start, lambda n: os.getpid()).results()
print(next(found), next(found), flush=True)
{end}
"""


@pytest.mark.program
@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(0)", "raise KeyError", "time.sleep(60)"]
)
def test_no_orphans_however_the_trainer_ends(end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(end=end)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        if "sleep" in end:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_dev_shm_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("multiprocessing.synchronize.Semaphore.__init__", full)
    with pytest.raises(
        OneRankError, match=rf"data.workers = 2: {os.strerror(number)} in /dev/shm, .* set data.workers=0"
    ):
        workers(2, lambda n: n)
