import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3p.data.languages import LANGUAGE_TAG
from m3p.data.shards.manifest import Manifest, check_shards, write_manifest
from m3p.errors import UserError
from m3p.prepare.shards import ShardWriter


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    with ShardWriter(folder, "text", 3, language="de") as writer:
        for number in range(7):
            writer.write({"txt": b"Satz %d" % number})
    return folder


def edited(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, **changes}))


def test_comes_back_as_written(source: Path) -> None:
    manifest = Manifest.load(source)
    assert [shard.samples for shard in manifest.shards] == [3, 3, 1]
    write_manifest(source, manifest)
    assert Manifest.load(source) == manifest
    assert not list(source.glob("*.partial")) + list(source.glob(".*"))
    check_shards(source, manifest)


def test_what_cannot_be_written_leaves_nothing(source: Path) -> None:
    manifest = Manifest.load(source)
    (source / "manifest.json").unlink()
    (source / "manifest.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_manifest(source, manifest)
    assert not list(source.glob("*.partial")) + list(source.glob(".*"))


def test_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"m3p prepare.*m3p index"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("content", ["{broken", "\ufffe", "[]", "{}", '{"format_version": 2}', '{"a":' * 100_000])
def test_refuses_broken_and_unknown_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json.*m3p index"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": 8}, "samples is 8, but its shards hold 7"),
        ({"language": None}, "text needs a language"),
        ({"kind": "video"}, "kind"),
        ({"colour": "red"}, "colour"),
        ({"shards": 5}, "shards: .*want a list of shards"),
        ({"shards": None}, "shards: .*want a list of shards"),
        ({"shards": {"a": 1}}, "shards: .*want a list of shards"),
        ({"samples": 0, "shards": []}, "hold no sample"),
        (
            {"samples": 1, "shards": [{"name": "../x.tar", "samples": 1, "bytes": 1, "fingerprint": ""}]},
            r"shards\.0\.name",
        ),
        ({"samples": 2, "shards": [{"name": "x.tar", "samples": 1, "bytes": 1, "fingerprint": ""}] * 2}, "twice"),
    ],
)
def test_names_the_wrong_field(source: Path, changes: dict[str, Any], reason: str) -> None:
    edited(source, **changes)
    with pytest.raises(UserError, match=reason):
        Manifest.load(source)


def test_names_bad_shards_and_the_way_out(source: Path) -> None:
    manifest = Manifest.load(source)
    (source / "shard-000000.tar").unlink()
    cut = source / "shard-000001.tar"
    cut.write_bytes(cut.read_bytes()[:-1])
    (source / "shard-000002.idx").unlink()
    with pytest.raises(UserError) as caught:
        check_shards(source, manifest)
    message = str(caught.value)
    assert "shard-000000.tar is missing" in message
    assert "shard-000001.tar has 10,239 bytes but was indexed with 10,240" in message
    assert "shard-000002.tar has no index" in message
    assert f"m3p index {source} --kind text --language de" in message


def test_refuses_the_index_of_another_tar(source: Path) -> None:
    shutil.copy(source / "shard-000000.idx", source / "shard-000002.idx")
    (source / "shard-000001.idx").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"000001\.tar has an index that cannot.*000002\.tar has an index of another"):
        check_shards(source, Manifest.load(source))


def test_lists_five_bad_shards_at_most(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "text", 1, language="de") as writer:
        for _ in range(7):
            writer.write({"txt": b"x"})
    for tar in tmp_path.glob("*.tar"):
        tar.unlink()
    with pytest.raises(UserError, match=r"shard-000004\.tar is missing, and 2 more"):
        check_shards(tmp_path, writer.manifest)


def test_index_is_a_plain_npy_file(source: Path) -> None:
    offsets = np.load(source / "shard-000000.idx", mmap_mode="r", allow_pickle=False)
    assert offsets.dtype == np.uint64
    assert offsets.tolist() == [0, 1024, 2048, 3072]


@pytest.mark.parametrize("tag", ["de", "zh-Hant", "ca-valencia", "sr-Latn", "fil"])
def test_language_tags(tag: str) -> None:
    assert LANGUAGE_TAG.fullmatch(tag)


@pytest.mark.parametrize("tag", ["", "german language", "d", "de_DE", "de-", "../de"])
def test_no_language_tags(tag: str) -> None:
    assert not LANGUAGE_TAG.fullmatch(tag)


def test_a_manifest_that_was_damaged_is_refused_wherever_it_was(source: Path) -> None:
    path = source / "manifest.json"
    whole, wanted = path.read_bytes(), Manifest.load(source)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = Manifest.load(source)
        except UserError:
            continue
        assert found == wanted, f"byte {place}: {whole[place : place + 1]!r}"


def test_a_manifest_without_a_checksum_or_laid_out_anew_is_read(source: Path) -> None:
    path, wanted = source / "manifest.json", Manifest.load(source)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content))
    assert Manifest.load(source) == wanted
    content["shards"][0]["fingerprint"] = "0" * 48
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"damaged, or was changed by hand: .*delete the field checksum"):
        Manifest.load(source)
    del content["checksum"]
    path.write_text(json.dumps(content))
    assert Manifest.load(source).shards[0].fingerprint == "0" * 48
