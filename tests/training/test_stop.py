import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from m3p import distributed, locks
from m3p.errors import UserError
from m3p.training.stop import (
    GRACEFUL,
    RunOwner,
    StopSignal,
    check_no_stop_file,
    forget_status,
    write_done,
    write_stopped,
)


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[StopSignal]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and stays so
    with StopSignal(tmp_path) as signals:
        yield signals
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", GRACEFUL)
def test_a_signal_is_only_noted_and_answered_at_the_step(watching: StopSignal, number: signal.Signals) -> None:
    assert watching.requested(1)[0] is None
    signal.raise_signal(number)
    assert watching.requested(2)[0] == "signal"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_second_signal_changes_nothing(watching: StopSignal, number: signal.Signals) -> None:
    signal.raise_signal(number)
    signal.raise_signal(number)
    assert watching.requested(1)[0] == "signal"


def test_a_second_interrupt_interrupts(watching: StopSignal) -> None:
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_the_handlers_of_before_come_back_and_warnings_are_ignored(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in GRACEFUL]
    with StopSignal(tmp_path):
        assert [signal.getsignal(number) for number in GRACEFUL] != before
    after = [signal.getsignal(number) for number in GRACEFUL]
    assert after == [signal.SIG_IGN, signal.SIG_IGN, *before[2:]]


def test_a_stop_file_outweighs_a_signal(watching: StopSignal, tmp_path: Path) -> None:
    signal.raise_signal(signal.SIGTERM)
    (tmp_path / "STOP").touch()
    assert watching.requested(1)[0] == "file"


def test_one_rank_alone_sees_the_file_and_all_stop(
    watching: StopSignal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "STOP").touch()
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    assert watching.requested(1)[0] is None
    monkeypatch.setattr(distributed, "all_reduce_max", lambda code, last, first, busy: [2, last, first, busy])
    assert watching.requested(1)[0] == "file"


def test_ranks_at_different_steps_are_a_defect_of_ours(watching: StopSignal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "all_reduce_max", lambda code, last, first, busy: [code, last + 1, first, busy])
    with pytest.raises(AssertionError, match="different steps: 4 to 5"):
        watching.requested(4)


def test_a_stop_file_that_is_left_is_refused_by_name(tmp_path: Path) -> None:
    check_no_stop_file(tmp_path)
    (tmp_path / "STOP").touch()
    with pytest.raises(UserError, match=f"{tmp_path / 'STOP'} is there: .* remove the file"):
        check_no_stop_file(tmp_path)


@pytest.mark.program
def test_a_worker_survives_the_signals_of_the_step(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from m3p.training.stop import GRACEFUL, StopSignal, ignore_in_worker
stop = StopSignal(Path({str(tmp_path)!r}))
if (child := os.fork()) == 0:
    ignore_in_worker(0)
    for number in GRACEFUL * 2:
        os.kill(os.getpid(), number)
    os._exit(3 if stop.signalled else 0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stop.signalled)
"""
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split() == ["0", "False"]


def test_the_status_is_one_whole_line(tmp_path: Path) -> None:
    write_stopped(tmp_path, "signal", 12)
    assert (tmp_path / "status").read_text() == "stopped signal 12\n"
    write_done(tmp_path)
    assert (tmp_path / "status").read_text() == "done\n"
    assert [path.name for path in tmp_path.iterdir()] == ["status"]


def test_a_new_start_forgets_the_status_of_the_last(tmp_path: Path) -> None:
    write_done(tmp_path)
    forget_status(tmp_path)
    forget_status(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_write_that_is_cut_short_leaves_the_old_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stopped(tmp_path, "signal", 12)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_done(tmp_path)
    assert (tmp_path / "status").read_text() == "stopped signal 12\n"


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    write_done(tmp_path)
    assert not list(tmp_path.iterdir())


def elsewhere(machine: str = "another", pid: int = 1, started: str = "0") -> str:
    """Return what owner.json says of a process."""
    return locks.Holder(machine=machine, pid=pid, started=started).model_dump_json()


def test_a_run_by_hand_owns_its_folder_until_another_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("M3P_INCARNATION", raising=False)
    first = RunOwner(tmp_path)
    first.check()
    (tmp_path / "incarnation").write_text("another\n")
    with pytest.raises(UserError, match="another job has taken over"):
        first.check()


def test_two_lone_runs_of_one_job_do_not_both_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3P_INCARNATION", "17.0")
    (tmp_path / "incarnation").write_text("17.0\n")
    (tmp_path / "owner.json").write_text(elsewhere())  # of another node: taken over, since nothing tells that it lives
    first = RunOwner(tmp_path)
    first.check()
    (tmp_path / "owner.json").write_text(elsewhere())
    with pytest.raises(UserError, match=r"names another start of this run.*unset RANK"):
        first.check()


@pytest.mark.program
def test_a_second_start_on_one_machine_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from m3p.training.stop import RunOwner; RunOwner(Path(sys.argv[1])); "
        "print('owned', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "owned\n"
    with pytest.raises(UserError, match=f"is trained by process {first.pid} of this machine now"):
        RunOwner(tmp_path)
    first.kill()
    first.communicate()
    RunOwner(tmp_path).check()


@pytest.mark.program
def test_what_is_printed_after_a_hangup_goes_to_a_file(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, time; from pathlib import Path; from m3p.training.stop import StopSignal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # where these tests run under nohup, it is ignored
        "with StopSignal(Path(sys.argv[1])) as stop:\n"
        "    Path(sys.argv[1], 'ready').touch()\n"
        "    deadline = time.monotonic() + 60\n"
        "    while not stop.signalled and time.monotonic() < deadline:\n"
        "        time.sleep(0.05)\n"
        "    assert stop.signalled\n"
        "    print('saved', flush=True)\n"
        "    Path(sys.argv[1], 'ended').touch()\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", program, str(tmp_path)])
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    os.close(terminal)  # the window is closed
    os.waitpid(pid, 0)
    assert (tmp_path / "ended").exists()
    assert (tmp_path / "hangup.txt").read_text() == "saved\n"


def test_under_nohup_a_hangup_changes_nothing(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal(tmp_path) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested(1)[0] is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_job_that_lost_the_folder_before_it_started_does_not_take_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M3P_INCARNATION", "17.0")
    (tmp_path / "incarnation").write_text("17.1\n")
    with pytest.raises(UserError, match=r"names 17\.1, not this job \(17\.0\)"):
        RunOwner(tmp_path)
    assert (tmp_path / "incarnation").read_text() == "17.1\n"
