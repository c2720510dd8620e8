"""Pools of processes: what the system refuses, and what kills one, is one message."""

import errno
import multiprocessing
import os
import signal

import pytest

from m3p.errors import UserError
from m3p.process_pool import process_pool


def nothing() -> None:
    """Start a process."""


def test_a_killed_process_is_said_and_what_is_left_can_be_done() -> None:
    context = multiprocessing.get_context("fork")
    with (
        pytest.raises(UserError, match="was killed, for want of memory as a rule: the same command goes on"),
        process_pool(1, context, nothing, ()) as pool,
    ):
        pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()


def test_other_errors_of_the_work_stay_what_they_are() -> None:
    with pytest.raises(FileNotFoundError), process_pool(1, multiprocessing.get_context("fork"), nothing, ()) as pool:
        pool.submit(os.stat, "/none").result()


def test_a_full_dev_shm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", full)
    with (
        pytest.raises(UserError, match=r"No space left on device in /dev/shm, .* --shm-size"),
        process_pool(1, multiprocessing.get_context("fork"), nothing, ()),
    ):
        pytest.fail("there is a pool")
