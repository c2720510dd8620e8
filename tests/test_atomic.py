"""Files that are written aside and renamed."""

import errno
import os
from pathlib import Path

import pytest

from m3p.atomic import publish, replacing, write_text
from m3p.errors import no_room


def test_a_reader_finds_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("old")
    with replacing(path) as aside:
        aside.write_text("half")
        assert path.read_text() == "old"
        aside.write_text("new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_where_writing_fails_nothing_changes_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as aside:
            aside.write_text("half")
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_content_reaches_the_disk_before_the_name_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "content")
        sync(descriptor)

    def replace(old: Path, new: Path) -> None:
        done.append("name")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "a", "é\n")
    assert done == ["content", "name", "folder"]
    assert (tmp_path / "a").read_text(encoding="utf-8") == "é\n"
    done.clear()
    (tmp_path / "aside").write_text("x")
    publish(tmp_path / "aside", tmp_path / "a", durable=False)
    assert done == ["name"]


def test_a_full_disk_says_which_file_had_no_room(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert no_room(caught.value) == f"{tmp_path / 'file'}: No space left on device; free some, or write elsewhere"
