import ctypes
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from m3p.data.source import Source, SourceConfig
from m3p.data.storage.folders import LocalFolder
from m3p.prepare.shards import ShardWriter


def in_memory(path: Path) -> float:
    """Return the share of a file that the system holds, without touching it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        address = ctypes.c_char.from_buffer(mapped)
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        libc = ctypes.CDLL(None, use_errno=True)
        size = ctypes.c_size_t(len(mapped))
        assert libc.mincore(ctypes.c_void_p(ctypes.addressof(address)), size, pages) == 0, ctypes.get_errno()
        del address
        return sum(page & 1 for page in pages) / len(pages)


def forget(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if in_memory(path):
        pytest.skip("this file system keeps its files in memory")


def wait_until_in_memory(paths: list[Path]) -> None:
    deadline = time.monotonic() + 20
    while min(map(in_memory, paths)) < 1:
        assert time.monotonic() < deadline, list(map(in_memory, paths))
        time.sleep(0.01)


@pytest.mark.long
def test_shards_are_read_into_memory_a_window_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3p.data.storage.folders.PIECE", 10**6)  # several pieces a shard
    with ShardWriter(tmp_path, "text", 2, "en") as writer:
        for number in range(12):
            writer.write({"txt": b"%02d" % number * 2 * 10**6})
    source = Source(tmp_path, SourceConfig(path=str(tmp_path)), (0, "x", 0), 2, None)
    shards = [tmp_path / shard.name for shard in LocalFolder(tmp_path).manifest.shards]
    for path in shards:
        forget(path)
    mine, after = source.order.shards(0)
    last = sorted({0, 1, 2, 3, 4, 5} - {*mine, *after})
    source.read_many(np.array([0]))
    wait_until_in_memory([shards[number] for number in (*mine, *after)])
    assert [in_memory(shards[number]) for number in last] == [0, 0]
    source.read_many(np.array([4]))
    wait_until_in_memory([shards[number] for number in last])


@pytest.mark.program
def test_what_is_still_to_be_fetched_does_not_keep_a_process_that_is_done() -> None:
    work = "_background(os.getpid()).put(lambda: time.sleep(600))"
    program = f"import os, time; from m3p.data.storage.folders import _background; {work}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
