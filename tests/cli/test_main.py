"""Of trainer/m3p/cli/main.py: which errors of the system are the user's to mend."""

import errno
import os
import sys
import threading
from pathlib import Path

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from m3p.cli import main as cli
from tests.test_export import write_run


def fail_with(monkeypatch: pytest.MonkeyPatch, words: list[str], number: int, name: str | None) -> None:
    def app() -> None:
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr(sys, "argv", ["m3p", *words])
    monkeypatch.setattr(cli, "app", app)
    cli.main()


@pytest.mark.parametrize(
    ("number", "name", "message"),
    [
        (errno.ENOSPC, None, "error: No space left on device; free some"),
        (errno.EMFILE, "/x/y", "error: /x/y: Too many open files: allow more (`ulimit -n 65536`)"),
        (errno.EROFS, "/x/.manifest.json.partial", "error: /x/.manifest.json.partial: Read-only file system; "),
        (errno.EACCES, "/x/y", "error: /x/y: Permission denied; take another path"),
        (errno.ENOENT, "/data/a/x.json", "error: /data/a/x.json: No such file or directory; check the path"),
        (errno.ENOTDIR, "/run/a", "error: /run/a: Not a directory; check the path"),
        (errno.ENOENT, "/run", "error: /run: No such file or directory; check the path"),
        (errno.EISDIR, os.path.abspath("here/x"), "Is a directory; check the path"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, name: str | None, message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        fail_with(monkeypatch, ["index", "/data/a", "--output", "./here", "run.folder=/run/a"], number, name)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("number", "name"),
    [(errno.ENOENT, "/data/ab/x"), (errno.ENOENT, None), (errno.EACCES, None), (errno.EIO, "/data/a/x")],
)
def test_what_is_no_mistake_of_the_user_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, number: int, name: str | None
) -> None:
    with pytest.raises(OSError, match=os.strerror(number)):
        fail_with(monkeypatch, ["index", "/data/a", ""], number, name)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "de.txt").write_text("Ein Satz.")
    monkeypatch.setattr(sys, "argv", ["m3p", "prepare", "text", str(tmp_path), "--output", str(tmp_path / "out")])
    monkeypatch.setattr("m3p.prepare.shards.ShardWriter.write", lambda *_: Path("/dev/full").write_text("x"))
    with pytest.raises(SystemExit):
        cli.main()
    assert "error: No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["de.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_under_an_evaluation_is_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    def full(self: RecordWriter, data: bytes) -> None:
        raise OSError(number, os.strerror(number))

    write_run(tiny, tmp_path / "run")
    monkeypatch.setattr(RecordWriter, "write", full)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # put back at the end
    monkeypatch.setattr(sys, "argv", ["m3p", "evaluate", str(tmp_path / "run"), "train"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    said = capfd.readouterr().err
    assert f"error: {os.strerror(number)}; free some" in said
    assert "Traceback" not in said
