import contextlib
import io
import mmap
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from m3p.data.records import Members
from m3p.data.shards.index_file import open_index, write_index
from m3p.data.shards.index_folder import index_folder
from m3p.data.shards.sample_members import members
from m3p.data.shards.shard_table import index_name
from m3p.data.shards.tar import head_sum
from m3p.data.storage import reader
from m3p.data.storage.folders import LocalFolder
from m3p.data.storage.reader import ShardReader
from m3p.errors import BadSample, OneRankError
from m3p.prepare.shards import ShardWriter


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


def read_many(reading: ShardReader, shards: NDArray[np.int64], samples: NDArray[np.int64]) -> list[Members | BadSample]:
    """Return the members of each sample, or why it cannot be read."""
    found, bad = reading.read_many(shards, samples, lambda members: members)
    assert len(found) == len(shards)
    return [bad.get(number, one or {}) for number, one in enumerate(found)]


def test_many_samples_are_read_as_one_by_one(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_OPEN", 2)
    reading = ShardReader(LocalFolder(shards[0].parent))
    damaged = int(np.load(shards[1].with_suffix(".idx"))[2])
    with shards[1].open("r+b") as file:
        file.seek(damaged)
        file.write(bytes(512))
    numbers, samples = np.array([2, 0, 1, 2, 1, 0]), np.array([3, 1, 2, 0, 2, 0])
    read = read_many(reading, numbers, samples)
    for number, (shard, sample) in enumerate(zip(numbers.tolist(), samples.tolist(), strict=True)):
        if shard == 1:
            assert "broken tar" in str(read[number])
        else:
            assert read[number] == reading.read(shard, sample) == {"txt": f"{shard} {sample}".encode(), "json": b"{}"}


RECORD = b'{"captions": {"en": ["a dog"]}}'
FILES = [("a.jpg", b"p" * 700), ("a.json", RECORD), ("b.jpg", b""), ("b.json", RECORD.ljust(512))]


@pytest.mark.long
@given(changes=st.lists(st.tuples(st.integers(0, 5119), st.integers(0, 255)), max_size=3), right=st.booleans())
@settings(max_examples=300, deadline=None)
def test_changed_shards_are_read_as_indexed_or_parsed(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], right: bool
) -> None:
    """`right`: checksums are made right again, or nothing but them would ever be looked at."""
    path = tmp_path_factory.mktemp("changed") / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in FILES:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    index_folder(path.parent, "captions")
    tar_bytes = bytearray(path.read_bytes())
    heads = [0, 1536, 2560, 3072]
    before = [head_sum(bytes(tar_bytes[head : head + 512])) for head in heads]
    for place, value in changes:
        tar_bytes[place] = value
    for head in heads if right else []:
        make_checksum_right(tar_bytes, head)
    reading = ShardReader(LocalFolder(path.parent))
    reading.sizes(0, np.arange(2))  # open: a shard that has changed as a whole is not opened
    path.write_bytes(tar_bytes)
    many = read_many(reading, np.zeros(2, np.int64), np.arange(2))
    for sample, (first, end) in enumerate([(0, 2560), (2560, 4096)]):
        span = bytes(tar_bytes[first:end])
        kept = [head_sum(bytes(tar_bytes[head : head + 512])) for head in heads][2 * sample :][:2] == before[
            2 * sample :
        ][:2]
        try:
            wanted = members(span)
        except BadSample as reason:
            wanted = {"why": str(reason).encode()}
        if kept:
            starts = [head + 512 for head in heads[2 * sample :][:2]]
            lengths = [len(content) for _, content in FILES[2 * sample :][:2]]
            wanted = {
                extension: bytes(tar_bytes[start : start + length])
                for extension, start, length in zip(("jpg", "json"), starts, lengths, strict=True)
            }
        found = many[sample]
        assert ({"why": str(found).encode()} if isinstance(found, BadSample) else found) == wanted


def test_a_shard_cut_short_under_way_is_noticed_by_the_next_micro_batch(shards: list[Path]) -> None:
    reading = ShardReader(LocalFolder(shards[0].parent))
    places = np.zeros(2, np.int64), np.array([0, 3])
    assert read_many(reading, *places)[1] == {"txt": b"0 3", "json": b"{}"}
    os.truncate(shards[0], 6744)
    found = read_many(reading, *places)
    assert found[0] == {"txt": b"0 0", "json": b"{}"}
    assert "the shard ends at byte 6744, inside the sample" in str(found[1])


def wrong_offsets(path: Path, place: int, value: int) -> None:
    index = open_index(path, 4)
    offsets = np.array(index.offsets, np.uint64)
    offsets[place] = value
    write_index(path, index._replace(offsets=offsets.data))


@pytest.mark.parametrize(
    ("place", "value"), [(0, 2**64 - 512), (1, 0), (1, 2**63 + 512), (2, 512), (4, 10_752), (4, 2**64 - 1)]
)
def test_an_index_whose_offsets_cannot_be_right_is_refused_when_its_shard_is_opened(
    shards: list[Path], place: int, value: int
) -> None:
    wrong_offsets(shards[0].with_name(index_name(shards[0].name)), place, value)
    reading = ShardReader(LocalFolder(shards[0].parent))
    with pytest.raises(
        OneRankError, match=r"shard-000000\.tar has a damaged index \(.*000\.idx: .*run `m3p index` again"
    ):
        reading.read(0, 0)
    assert reading.read(1, 2)["txt"] == b"1 2"


def test_offsets_need_not_begin_at_0(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", pax_headers={"comment": "made by hand"}) as tar:
        for name in ("._0.txt", "0.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
    index_folder(tmp_path, "text", "en")
    assert np.load(tmp_path / "a.idx")[0] > 0
    assert ShardReader(LocalFolder(tmp_path)).read(0, 0) == {"txt": b"text"}


@pytest.mark.long
@given(changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_damaged_index_gives_samples_or_one_named_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    with ShardWriter(folder, "text", 4, "en") as writer:
        for number in range(4):
            writer.write({"txt": f"text {number}".encode()})
    path = folder / "shard-000000.idx"
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    reading = ShardReader(LocalFolder(folder))
    with contextlib.suppress(OneRankError):
        assert len(read_many(reading, np.zeros(4, np.int64), np.arange(4))) == 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x93NUMPY", b"PK\x03\x04PY"),
        (b"(5,), }", b"(5,), ("),
        (b"(5,), }".ljust(30), (b"(%d,), }" % 10**15).ljust(30)),
        (b"<u8", b"|O8"),
    ],
)
def test_an_index_whose_array_cannot_be_read_is_named(shards: list[Path], old: bytes, new: bytes) -> None:
    path = shards[0].with_name(index_name(shards[0].name))
    content = path.read_bytes()
    assert old in content
    assert len(old) == len(new), "another size would be refused sooner"
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(
        OneRankError, match=r"shard-000000\.tar has an index .*\(shard-000000\.idx\): run `m3p index` again"
    ):
        ShardReader(LocalFolder(shards[0].parent)).read(0, 0)


def test_samples_of_one_file_are_views_of_the_shard_and_others_are_read(tmp_path: Path) -> None:
    texts = [b"one", b"two" * 400, None, b"", b"\xff", b"six"]
    with ShardWriter(tmp_path, "text", 3, "en") as writer:
        for text in texts:
            writer.write({"txt": text} if text is not None else {"txt": b"with", "json": b"{}"})
    reading = ShardReader(LocalFolder(tmp_path))
    places = np.array([5, 2, 0, 4, 1, 3])
    found = read_many(reading, places // 3, places % 3)
    for place, one in zip(places.tolist(), found, strict=True):
        text = texts[place]
        assert one == ({"txt": text} if text is not None else {"txt": b"with", "json": b"{}"})
        assert not isinstance(one, BadSample)
        view = one["txt"]
        mapped = isinstance(view, memoryview) and isinstance(view.obj, mmap.mmap)
        assert mapped is (text is not None), "a view of the whole shard, not a copy of a piece"
    cut = ShardReader(LocalFolder(tmp_path))
    cut.sizes(0, np.arange(3))
    os.truncate(tmp_path / cut._shards[0].name, 600)
    missing = read_many(cut, places // 3, places % 3)
    assert [isinstance(one, BadSample) for one in missing] == [place < 3 for place in places.tolist()]


@pytest.mark.long
@given(
    changes=st.lists(st.tuples(st.integers(0, 2047), st.integers(0, 255)), min_size=1, max_size=3), right=st.booleans()
)
@settings(max_examples=200, deadline=None)
def test_changed_shards_of_single_files_are_read_as_indexed_or_parsed(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], right: bool
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    with ShardWriter(folder, "text", 2, "en") as writer:
        for text in (b"some text", b"more"):
            writer.write({"txt": text})
    path = folder / writer.manifest.shards[0].name
    content = bytearray(path.read_bytes())
    before = [head_sum(bytes(content[head : head + 512])) for head in (0, 1024)]
    for place, value in changes:
        content[place] = value
    for head in (0, 1024) if right else ():
        make_checksum_right(content, head)
    reading = ShardReader(LocalFolder(folder))
    reading.sizes(0, np.arange(2))
    path.write_bytes(content)
    after = [head_sum(bytes(content[head : head + 512])) for head in (0, 1024)]
    found = read_many(reading, np.zeros(2, np.int64), np.arange(2))
    spans = [bytes(content[0:1024]), bytes(content[1024:2048])]
    there = [bytes(content[512:521]), bytes(content[1536:1540])]
    for one, span, text, now, then in zip(found, spans, there, after, before, strict=True):
        try:
            wanted: object = {"txt": text} if now == then else members(span)
        except BadSample as reason:
            wanted = str(reason)
        assert (str(one) if isinstance(one, BadSample) else one) == wanted


def make_checksum_right(content: bytearray, head: int) -> None:
    block = content[head : head + 512]
    block[148:156] = b" " * 8
    content[head + 148 : head + 156] = b"%06o\0 " % sum(block)


def test_few_shards_are_open_at_once_over_all_readers(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    readers = [ShardReader(LocalFolder(shards[0].parent)) for _ in range(4)]
    monkeypatch.setattr(reader, "MAX_OPEN", len(reader._open) + 2)
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


@pytest.mark.program
def test_a_copy_in_another_process_opens_its_own_files(shards: list[Path]) -> None:
    reading = ShardReader(LocalFolder(shards[0].parent))
    reading.read(1, 0)
    program = f"import pickle; print(pickle.loads({pickle.dumps(reading)!r}).read(1, 2)['txt'].decode())"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "1 2\n"
