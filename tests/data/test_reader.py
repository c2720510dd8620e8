import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
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


def test_many_samples_are_read_as_one_by_one(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST_OPEN", 2)
    reading = ShardReader(LocalFolder(shards[0].parent))
    os.truncate(shards[1], 600)
    numbers, samples = np.array([2, 0, 1, 2, 1, 0]), np.array([3, 1, 0, 0, 2, 0])
    read = dict(reading.spans(numbers, samples))
    found = [read[number] for number in range(6)]
    for shard, sample, span in zip(numbers.tolist(), samples.tolist(), found, strict=True):
        if shard == 1:
            assert "inside the sample (truncated since it was indexed)" in str(span)
        else:
            assert span == reading.span(shard, sample)
            assert isinstance(span, bytes)


def test_lone_files_are_found_without_copying_and_others_left_to_read(tmp_path: Path) -> None:
    texts = [b"one", b"two" * 400, None, b"", b"\xff", b"six"]
    with ShardWriter(tmp_path, "text", 3, "en") as writer:
        for text in texts:
            writer.write({"txt": text} if text is not None else {"txt": b"with", "json": b"{}"})
    reading = ShardReader(LocalFolder(tmp_path))
    places = np.array([5, 2, 0, 4, 1, 3])
    found = reading.lone_files(places // 3, places % 3, "txt")
    wanted = [texts[place] for place in places.tolist()]
    assert [None if content is None else bytes(content) for content in found] == wanted
    assert reading.lone_files(places // 3, places % 3, "jpg") == [None] * 6
    cut = ShardReader(LocalFolder(tmp_path))
    os.truncate(tmp_path / cut._shards[0].name, 600)
    missing = cut.lone_files(places // 3, places % 3, "txt")
    assert [content is None for content in missing] == [place < 3 for place in places.tolist()]


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
