"""A process that may open few files: whatever asks for one more than there may be, one line with the way out comes of it."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from m3p.data.shards.index_folder import index_folder
from m3p.data.source import Source, SourceConfig
from m3p.errors import UserError, out_of_files
from tests.data.broken import PATCHES, pair, write

MOST = 14
"""Files that the reading of a few shards has open at once, and some more."""


@contextmanager
def room_for(files: int) -> Iterator[None]:
    """Let this process open so many files more."""
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    free = (number for number in range(10**6) if number not in taken)
    limit = [next(free) for _ in range(files + 1)][-1]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def read(folder: Path, kind: str) -> list[str]:
    """Index a folder anew and read all of it; return what was bad. Raises UserError, or OSError."""
    if kind == "text":
        index_folder(folder, "text", "en")
    else:
        index_folder(folder, "captions")
    load = None if kind == "text" else PATCHES.load
    made = Source(folder, SourceConfig(path=str(folder)), (0, "x", 0), 2, load)
    return made.read_many(np.arange(made.manifest.samples)).messages


@pytest.mark.long
@pytest.mark.parametrize("kind", ["text", "captions"])
def test_too_many_open_files_are_one_line_and_no_sample_is_bad_for_it(tmp_path: Path, kind: str) -> None:
    for number in range(6):
        members = {"txt": b"one"} if kind == "text" else pair(number)
        write(tmp_path / f"{number}.tar", [(f"{number}{sample}", members) for sample in range(2)])
    assert read(tmp_path, kind) == []
    said = list[str]()
    for files in range(MOST):
        with room_for(files):
            try:
                assert read(tmp_path, kind) == []
                said.append("")
            except UserError as error:
                said.append(str(error))
            except OSError as error:
                said.append(out_of_files(error) or repr(error))  # what the entry points print
    assert said[0]
    assert not said[-1]
    assert all("ulimit -n" in message for message in said if message), said
