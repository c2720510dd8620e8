"""Locks between processes, where the file system has flock and where it has not."""

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from m3p.data.shards.index_folder import index_folder
from m3p.data.storage.cache import Cache, Wanted
from m3p.errors import UserError
from m3p.locks import Holder, hold, lock_file
from tests.data.broken import pair, write

FORK = multiprocessing.get_context("fork")


@pytest.fixture(
    params=[None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=["flock", "ENOSYS", "ENOLCK", "ENOTSUP"]
)
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Make flock fail as on a file system that has none; None: leave it."""
    number: int | None = request.param

    def fail(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number or 0))

    if number is not None:
        monkeypatch.setattr(fcntl, "flock", fail)
    return number


def _hold_until_killed(path: Path, ready: str) -> None:
    with hold(path) as mine:
        Path(ready).write_text(str(mine))
        time.sleep(60)


def _holder_process(path: Path) -> multiprocessing.process.BaseProcess:
    ready = path.with_name("ready")
    process = FORK.Process(target=_hold_until_killed, args=(path, str(ready)))
    process.start()
    while not ready.exists():
        time.sleep(0.01)
    return process


def _add_one(path: Path, counter: Path, times: int) -> None:
    for _ in range(times):
        with hold(path) as mine:
            assert mine
            number = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(number + 1))


@pytest.mark.usefixtures("file_system")
def test_one_holds_it_and_then_another(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path, 0) as mine:
        assert mine
        with hold(path, 0) as second:
            assert not second
    with hold(path, 0) as again:
        assert again


@pytest.mark.usefixtures("file_system")
def test_it_is_let_go_of_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "lock"):
        _ = 1 / 0
    with hold(tmp_path / "lock", 0) as mine:
        assert mine


@pytest.mark.long
@pytest.mark.usefixtures("file_system")
def test_processes_and_threads_come_one_after_the_other(tmp_path: Path) -> None:
    path, counter = tmp_path / "lock", tmp_path / "counter"
    counter.write_text("0")
    makers = [FORK.Process, FORK.Process, FORK.Process, threading.Thread, threading.Thread]
    workers = [make(target=_add_one, args=(path, counter, 20)) for make in makers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counter.read_text() == "100"


@pytest.mark.usefixtures("file_system")
def test_a_killed_process_leaves_it_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = _holder_process(path)
    with hold(path, 0) as mine:
        assert not mine
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.2)  # a killed child that its parent has not waited for yet has ended too
    with hold(path, 0) as mine:
        assert mine
    process.join()


@pytest.mark.usefixtures("file_system")
def test_who_waits_gets_a_new_one_where_the_holder_deletes_the_file(tmp_path: Path) -> None:
    path, got = tmp_path / "lock", []

    def wait() -> None:
        with hold(path) as mine:
            got.append(mine and path.exists())

    with hold(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.1)
        path.unlink()
    waiting.join()
    assert got == [True]


def test_a_lock_file_of_another_machine_is_kept_and_its_holder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "no flock")))
    path = tmp_path / "lock"
    file = lock_file(path)
    file.write_text(Holder(machine="node7 x y", pid=1, started="5").model_dump_json())
    with hold(path, 0) as mine:
        assert not mine
    said = capsys.readouterr().err
    assert f"{file}: held by process 1 on node7; if that has ended, delete the file" in said
    file.unlink()  # the way out that the message names
    with hold(path, 0) as mine:
        assert mine


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"machine": "m", "pid": "x", "started": "1"}'])
def test_a_lock_file_that_says_nothing_is_somebodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    lock_file(tmp_path / "lock").write_bytes(content)
    with hold(tmp_path / "lock", 0) as mine:
        assert not mine


def test_other_errors_of_flock_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"), hold(tmp_path / "lock"):
        pass


def test_a_folder_is_indexed_without_flock(
    tmp_path: Path, file_system: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3p.data.shards.index_folder.PATIENCE", 0.0)
    write(tmp_path / "0.tar", [("a", pair())])
    with hold(tmp_path / ".index.progress"), pytest.raises(UserError, match="another `m3p index` is at work"):
        index_folder(tmp_path, "captions")
    assert index_folder(tmp_path, "captions").samples == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.idx", "0.tar", "manifest.json"]
    said = capsys.readouterr().err.count("has no flock")
    assert said == (0 if file_system is None else 1), "one line, and only where there is something to say"


@pytest.mark.usefixtures("file_system")
def test_a_cache_is_kept_without_flock(tmp_path: Path) -> None:
    source = tmp_path / "a.tar"
    source.write_bytes(b"x" * 100)
    cache = Cache(tmp_path / "cache", 10**6)
    cache.make()
    path = cache.get(source.as_uri(), "a.tar", Wanted(100, 100))
    assert path
    assert path.read_bytes() == source.read_bytes()
    assert [left.name for left in cache.folder.iterdir() if left.name.endswith(".lock.lock")] == []
