"""Files that are whole or absent: written aside, then renamed, so that no reader and no kill ever meets a part of one.

A rename alone is safe against a killed process. Against a crash of the machine the content must reach the disk before the
name does, and the name after it: that is what `durable` adds, at the price of waiting for the disk.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m3p.errors import NO_ROOM


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a path beside `path` to write to; when the block ends, that file becomes `path`, in place of an older one.

    The name aside belongs to this process, so that two writers do not mix. Where the block raises, nothing changes.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield aside
        publish(aside, path, durable)
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:  # of a full disk the system names no file
            error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Make `path` hold `text`, UTF-8; a reader finds the old content or the new."""
    with replacing(path, durable) as aside:
        aside.write_text(text, encoding="utf-8")


def final_path(path: Path) -> Path:
    """Return what a folder that is written aside, .NAME.partial, is to become, for messages; any other path as it is."""
    aside = re.fullmatch(r"\.(.+)\.partial", path.name)
    return path.with_name(aside[1]) if aside else path


def publish(aside: Path, path: Path, durable: bool = True) -> None:
    """Give the finished file `aside` the name `path`, in the same folder."""
    if durable:
        sync_file(aside)
    os.replace(aside, path)
    if durable:
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on its disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on its disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
