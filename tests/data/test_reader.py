import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.data import reader
from trainer.data.folders import LocalFolder
from trainer.data.reader import ShardReader
from trainer.errors import BadSample
from trainer.prepare.shards import ShardWriter


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Three shards of four texts; the text says shard and sample."""
    with ShardWriter(tmp_path, "text", 4, "en") as writer:
        for number in range(12):
            writer.write({"txt": f"{number // 4} {number % 4}".encode(), "json": b"{}"})
    return [tmp_path / shard.name for shard in writer.manifest.shards]


def test_any_sample_is_read_by_its_place(shards: list[Path]) -> None:
    reading = ShardReader(LocalFolder(shards[0].parent))
    for shard, sample in [(2, 3), (0, 0), (1, 2), (2, 0), (0, 3)]:
        assert reading.read(shard, sample) == {"txt": f"{shard} {sample}".encode(), "json": b"{}"}


def test_few_shards_are_open_at_once_over_all_readers(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    readers = [ShardReader(LocalFolder(shards[0].parent)) for _ in range(4)]
    monkeypatch.setattr(reader, "MOST_OPEN", len(reader._open) + 2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for shard in range(3):
            for reading in readers:
                assert reading.read(shard, 1)["txt"] == f"{shard} 1".encode()
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 2  # a descriptor and a mapping each


def test_a_shard_that_was_cut_since_is_a_bad_sample(shards: list[Path]) -> None:
    reading = ShardReader(LocalFolder(shards[0].parent))
    assert reading.read(1, 0)
    os.truncate(shards[1], 600)
    with pytest.raises(BadSample, match=r"the shard ends at byte 600, inside the sample \(truncated"):
        reading.read(1, 0)


def test_a_copy_in_another_process_opens_its_own_files(shards: list[Path]) -> None:
    reading = ShardReader(LocalFolder(shards[0].parent))
    reading.read(1, 0)
    program = f"import pickle; print(pickle.loads({pickle.dumps(reading)!r}).read(1, 2)['txt'].decode())"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "1 2\n"
