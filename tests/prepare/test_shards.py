import tarfile
from pathlib import Path

import pytest
import webdataset

from m3p.prepare.shards import ShardWriter


def write(folder: Path, count: int, per_shard: int) -> ShardWriter:
    with ShardWriter(folder, "captions", per_shard) as writer:
        for number in range(count):
            writer.write({"json": b'{"captions": {"en": ["%d"]}}' % number, "jpg": b"picture"})
    return writer


def test_rolls_over(tmp_path: Path) -> None:
    manifest = write(tmp_path, 7, 3).manifest
    assert [shard.samples for shard in manifest.shards] == [3, 3, 1]
    assert [shard.name for shard in manifest.shards] == [f"shard-00000{number}.tar" for number in range(3)]
    assert manifest.captions == {"en": 7}


def test_same_samples_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, 5, 3)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    with tarfile.open(tmp_path / "one" / "shard-000000.tar") as tar:
        assert {(info.mtime, info.uid, info.uname, info.mode) for info in tar} == {(0, 0, "m3p", 0o644)}


def test_webdataset_reads_them(tmp_path: Path) -> None:
    write(tmp_path, 4, 3)
    paths = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(4)]
    assert samples[3]["json"] == b'{"captions": {"en": ["3"]}}'


def write_wrongly(folder: Path) -> None:
    with ShardWriter(folder, "captions", 1) as writer:
        writer.write({"txt": b"fine"})
        writer.write({"txt": 3})  # type: ignore[dict-item]


def test_an_error_leaves_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="txt"):
        write_wrongly(tmp_path)
    assert not (tmp_path / "manifest.json").exists()
