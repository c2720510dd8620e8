from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from m3p.errors import UserError
from m3p.locks import hold
from m3p.prepare.staging import staged_folder


def write(output: Path, content: str, overwrite: bool = False) -> None:
    with staged_folder(output, "marker", overwrite) as folder:
        (folder / "marker").write_text(content)


def test_appears_when_it_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "output"
    with staged_folder(output, "marker", False) as folder:
        (folder / "marker").write_text("x")
        assert not output.exists()
    assert (output / "marker").read_text() == "x"
    assert list(output.parent.iterdir()) == [output]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "marker").read_text() == "x"


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "output", "marker", False):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_error_keeps_the_old_folder(tmp_path: Path) -> None:
    write(tmp_path / "output", "old")
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "output", "marker", True):
        raise RuntimeError
    assert (tmp_path / "output" / "marker").read_text() == "old"


def test_what_a_killed_command_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".output.partial").mkdir()
    (tmp_path / ".output.partial" / "half").touch()
    write(tmp_path / "output", "x")
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["marker"]


def test_replaces_only_on_request_and_only_its_own(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    write(output, "one")
    with pytest.raises(UserError, match=r"not empty.*--overwrite"):
        write(output, "two")
    write(output, "two", overwrite=True)
    assert (output / "marker").read_text() == "two"
    assert list(tmp_path.iterdir()) == [output]
    (output / "marker").rename(output / "precious")
    with pytest.raises(UserError, match="holds no marker"):
        write(output, "three", overwrite=True)
    assert (output / "precious").exists()
    with pytest.raises(UserError, match="is a file"):
        write(output / "precious", "four")
    with pytest.raises(UserError, match=r"precious is a file; give a folder"):
        write(output / "precious" / "inside" / "deeper", "five")


def test_two_commands_with_one_output_do_not_mix(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with staged_folder(output, "marker", False) as first:
        (first / "marker").write_text("first")
        with pytest.raises(UserError, match=r"another command is writing it: wait until it is done, or choose another"):
            write(output, "second")
        assert (first / "marker").read_text() == "first"
    assert (output / "marker").read_text() == "first"
    assert list(tmp_path.iterdir()) == [output]
    write(output, "third", overwrite=True)
    assert (output / "marker").read_text() == "third"


def test_what_another_command_wrote_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "output"
    real = hold

    @contextmanager
    def late(path: Path, patience: float) -> Iterator[bool]:
        output.mkdir()
        (output / "marker").write_text("first")  # written between the look at the output and the lock
        with real(path, patience) as mine:
            yield mine

    monkeypatch.setattr("m3p.prepare.staging.hold", late)
    with pytest.raises(UserError, match=r"not empty.*--overwrite"):
        write(output, "second")
    assert (output / "marker").read_text() == "first"


def test_what_was_there_comes_back_if_a_command_was_killed_while_it_replaced_it(tmp_path: Path) -> None:
    write(tmp_path / "output", "old")
    (tmp_path / "output").rename(tmp_path / ".output.old")
    with pytest.raises(UserError, match="not empty"):
        write(tmp_path / "output", "new")
    assert (tmp_path / "output" / "marker").read_text() == "old"
