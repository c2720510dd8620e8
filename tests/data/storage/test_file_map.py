"""Files that are cut short while they are read as memory."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m3p.data.records import Members
from m3p.data.shards.index_folder import index_folder
from m3p.data.storage.file_map import FileMap
from m3p.data.storage.folders import LocalFolder
from m3p.data.storage.reader import ShardReader
from tests.data.broken import write

SAMPLES = 40


def text(number: int) -> bytes:
    """A passage of more than a page of memory."""
    return f"passage {number} ".encode() * 500


def reader_that_cuts(folder: Path, keep: Callable[[int], int]) -> tuple[ShardReader, Callable[[Members], bytes]]:
    """Return a reader of one shard, and a `make` that cuts the shard to `keep(bytes)` when it has seen three samples."""
    write(folder / "a.tar", [(f"{number:02d}", {"txt": text(number)}) for number in range(SAMPLES)])
    index_folder(folder, "text", "en")
    seen = 0

    def make(members: Members) -> bytes:
        nonlocal seen
        seen += 1
        if seen == 3:
            os.truncate(folder / "a.tar", keep((folder / "a.tar").stat().st_size))
        return bytes(members["txt"])

    return ShardReader(LocalFolder(folder)), make


@pytest.mark.parametrize("keep", [lambda size: 0, lambda size: size // 2, lambda size: size // 2 // 4096 * 4096])
def test_samples_of_a_shard_cut_short_while_it_is_read_are_bad_and_the_process_lives(
    tmp_path: Path, keep: Callable[[int], int]
) -> None:
    reading, make = reader_that_cuts(tmp_path, keep)
    whole = (tmp_path / "a.tar").stat().st_size
    found, bad = reading.read_many(np.zeros(SAMPLES, np.int64), np.arange(SAMPLES), make)
    assert len(bad) >= SAMPLES * (1 - keep(whole) / whole) - 1
    for number, content in enumerate(found):
        if number in bad:
            assert content is None
            assert "truncated since it was indexed" in str(bad[number])
        else:
            assert content == text(number)
    again, worse = reading.read_many(np.zeros(SAMPLES, np.int64), np.arange(SAMPLES), make)
    assert again == found
    assert worse.keys() == bad.keys()


def test_a_map_tells_whether_what_was_read_counts(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 20_000)
    descriptor = os.open(path, os.O_RDONLY)
    found = FileMap(descriptor, 20_000)
    assert found.is_whole()
    with found.watched():
        os.truncate(path, 100)
        assert bytes(found.content[10_000:10_003]) == b"\0\0\0"
    os.truncate(path, 20_000)
    assert not found.is_whole(), "it was cut when it was read"
    os.close(descriptor)


@pytest.mark.program
def test_a_fault_in_other_memory_ends_the_process_as_before(tmp_path: Path) -> None:
    code = """
import mmap, os, sys
from m3p.data.storage.file_map import FileMap
path = sys.argv[1]
open(path, "wb").write(b"x" * 20_000)
ours, other = os.open(path, os.O_RDONLY), mmap.mmap(os.open(path, os.O_RDONLY), 20_000, access=mmap.ACCESS_READ)
with FileMap(ours, 20_000).watched():
    os.truncate(path, 0)
    other[10_000]
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], timeout=60)
    assert done.returncode == -7
