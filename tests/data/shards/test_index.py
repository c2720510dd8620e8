import fcntl
import gzip
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m3p.data.shards import index
from m3p.data.shards.index import feature_width, index_tar
from m3p.data.shards.index_file import (
    HEADER,
    MAX_MEMBERS,
    OTHER,
    SEAL,
    IndexFile,
    index_bytes,
    is_index_size,
    open_index,
)
from m3p.data.shards.index_folder import PROGRESS, _name, index_folder
from m3p.data.shards.manifest import Kind, Manifest, check_shards
from m3p.data.shards.sample_members import members
from m3p.data.shards.tar import Member
from m3p.errors import UserError
from tests.data.shards.tars import Files, pair, spans, write_tar


def regions(width: int) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, boxes=np.zeros((3, 4), np.float32), features=np.zeros((3, width), np.float16))
    return buffer.getvalue()


KEYS = st.text(st.characters(exclude_characters="/\0.", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=120)
SAMPLES = st.dictionaries(
    st.lists(KEYS, min_size=1, max_size=2).map("/".join),
    st.dictionaries(st.sampled_from(["jpg", "json", "txt", "regions.npz"]), st.binary(max_size=1100), min_size=1),
    max_size=5,
)


@given(SAMPLES, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_every_span_holds_its_sample(
    tmp_path_factory: pytest.TempPathFactory, samples: dict[str, dict[str, bytes]], form: int
) -> None:
    tar = tmp_path_factory.mktemp("index") / "a.tar"
    write_tar(tar, [(f"{key}.{e}", content) for key, parts in samples.items() for e, content in parts.items()], form)
    index = index_tar(tar, "text")
    assert index.samples == len(samples)
    assert [members(span) for span in spans(tar)] == list(samples.values())


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_sizes_are_those_of_texts_and_regions(tmp_path: Path, form: int) -> None:
    write_tar(tmp_path / "text.tar", [("a.txt", b"x" * 700), ("b.json", b"{}"), ("c.txt", b"y")], form)
    index_tar(tmp_path / "text.tar", "text")
    assert open_index(tmp_path / "text.idx", 3).sizes.tolist() == [700, 0, 1]
    pairs = [*pair("a"), *pair("b", **{"regions.npz": regions(7)}), *pair("c")]
    write_tar(tmp_path / "pairs.tar", pairs, form)
    index_tar(tmp_path / "pairs.tar", "captions")
    index = open_index(tmp_path / "pairs.idx", 3)
    assert index.sizes.tolist() == [0, len(regions(7)), 0]
    assert index.offsets.tolist() == np.load(tmp_path / "pairs.idx").tolist()
    assert (tmp_path / "pairs.idx").stat().st_size == index_bytes(3, 2)


def indexed(path: Path, files: Files, form: int = tarfile.USTAR_FORMAT) -> IndexFile:
    write_tar(path, files, form)
    return open_index(path.with_suffix(".idx"), index_tar(path, "captions").samples)


def test_the_index_knows_the_files_that_most_samples_consist_of(tmp_path: Path) -> None:
    files = [*pair("a"), *pair("b", txt=b"more"), *pair("c"), ("d.json", b"{}"), ("d.jpg", b"")]
    index = indexed(tmp_path / "a.tar", files)
    assert index.extensions == ("jpg", "json")
    assert index.lengths.tolist() == [[7, 31], [0, 0], [7, 31], [0, 0]]
    usual = [row != [OTHER, OTHER] for row in index.sums.tolist()]
    assert usual == [True, False, True, False]
    content = (tmp_path / "a.tar").read_bytes()
    heads = [content[index.offsets[2] :][:512], content[index.offsets[2] + 1024 :][:512]]
    assert index.sums[2].tolist() == [(sum(head) + 1) % 65_521 for head in heads]


def test_names_need_not_be_utf_8(tmp_path: Path) -> None:
    index = indexed(tmp_path / "a.tar", [("a.\udcff\udcfe", b"x"), ("a.json", b"{}")])
    assert index.extensions == ("\udcff\udcfe", "json")
    assert not (index.sums == OTHER).any()


def test_names_that_need_more_than_a_header_are_parsed_when_read(tmp_path: Path) -> None:
    index = indexed(tmp_path / "a.tar", [*pair("a"), *pair("n" * 150)], tarfile.PAX_FORMAT)
    assert (index.sums == OTHER).tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(
    "extensions",
    [["jpg", "JPG"], [f"e{number}" for number in range(9)], ["e" * 33, "jpg"]],
    ids=["twice", "many", "long"],
)
def test_what_no_index_holds_is_parsed_when_read(tmp_path: Path, extensions: list[str]) -> None:
    index = indexed(tmp_path / "a.tar", [(f"a.{extension}", b"x") for extension in extensions])
    assert index.extensions == ("",)
    assert index.sums.tolist() == [[OTHER]]


@given(st.integers(0, 10**6), st.integers(1, MAX_MEMBERS), st.integers(1, 4000))
@example(2, 1, 245)
def test_sizes_of_index_files_tell_parts_and_other_versions(samples: int, members: int, less: int) -> None:
    whole = index_bytes(samples, members)
    assert is_index_size(whole, samples)
    column = index_bytes(samples, 1) - index_bytes(samples, 0)
    # A part may be as long as a file without a seal; opening tells it from one, by the fingerprint that the manifest has.
    unsealed = whole - (3 * HEADER + 16 * samples + SEAL)
    sizes = {whole - column * fewer for fewer in range(members)}
    without_names = whole - (HEADER + 8 * samples)
    sizes |= {without_names + column * more for more in range(1 - members, MAX_MEMBERS - members + 1)}
    sizes |= {unsealed + column * more for more in range(1 - members, MAX_MEMBERS - members + 1)}
    assert is_index_size(whole - less, samples) == (whole - less in sizes)
    former = 2 * 128 + 8 * (samples + 1) + 4 * samples  # of the version before, which had offsets and sizes alone
    assert not is_index_size(former, samples)


def test_counts_captions_and_regions(tmp_path: Path) -> None:
    files = pair("a", {"en": ["x"], "de": ["y"]}) + pair("b", {"en": ["x"], "fr": []}) + pair("c", {})
    write_tar(tmp_path / "0.tar", files)
    write_tar(tmp_path / "1.tar", [*pair("d"), ("d.regions.npz", regions(7))])
    manifest = index_folder(tmp_path, "captions")
    assert manifest == Manifest.load(tmp_path)
    assert manifest.captions == {"de": 1, "en": 3}
    assert (manifest.samples, manifest.region_features, manifest.language) == (4, 7, None)
    assert [(shard.name, shard.samples) for shard in manifest.shards] == [("0.tar", 3), ("1.tar", 1)]
    check_shards(tmp_path, manifest)


def test_takes_img2dataset_layout_as_it_is(tmp_path: Path) -> None:
    record = json.dumps({"caption": "ein Hund", "url": "http://x/a.jpg", "status": "success"}).encode()
    write_tar(tmp_path / "00000.tar", [("0.jpg", b"p"), ("0.json", record), ("0.txt", b"ein Hund")])
    assert index_folder(tmp_path, "captions", "de").captions == {"de": 1}
    assert Manifest.load(tmp_path).language == "de"
    assert index_folder(tmp_path, "captions").language == "en"


def test_counts_samples_that_training_will_skip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "0.tar", [*pair("a"), ("b.jpg", b"p"), ("b.json", b"{broken"), ("c.json", b"{}")])
    assert index_folder(tmp_path, "captions").samples == 3
    assert "2 of 3 samples lack" in capsys.readouterr().out


def test_fingerprint_follows_what_files_hold(tmp_path: Path) -> None:
    """Of the same names and sizes: passages written otherwise, regions found again."""
    rng = np.random.default_rng(0)

    def fingerprint(text: bytes, features: np.ndarray[Any, Any]) -> str:
        buffer = io.BytesIO()
        np.savez(buffer, boxes=np.zeros((3, 4), np.float32), features=features)
        write_tar(tmp_path / "0.tar", pair("0", txt=text, **{"regions.npz": buffer.getvalue()}))
        return index_tar(tmp_path / "0.tar", "captions").fingerprint

    features = rng.random((9, 300)).astype(np.float16)
    other = features.copy()
    other[4, 150] += 1
    text = b"A passage. " * 90
    seen = [fingerprint(*of) for of in ((text, features), (text.swapcase(), features), (text, other), (text, features))]
    assert seen[0] == seen[3]
    assert len(set(seen)) == 3


def test_fingerprint_follows_the_members(tmp_path: Path) -> None:
    prints = []
    for files in (pair("a"), pair("a"), pair("b"), pair("a", {"en": ["a longer caption"]})):
        write_tar(tmp_path / "0.tar", files)
        prints.append(index_tar(tmp_path / "0.tar", "captions").fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_refuses_what_is_no_whole_tar(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    write_tar(tar, pair("a"))
    whole = tar.read_bytes()
    for content, reason in (
        (gzip.compress(whole), "compressed"),
        (whole[:700], "no whole tar"),
        (whole[:2048], "no whole tar"),
        (b"", "empty"),
    ):
        tar.write_bytes(content)
        with pytest.raises(UserError, match=f"0.tar.*{reason}"):
            index_folder(tmp_path, "captions")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (pair("a")[:1] + pair("b") + pair("a")[1:], "not side by side"),
        ([*pair("a"), ("a.regions.npz", regions(4)), *pair("b"), ("b.regions.npz", regions(5))], "'b' have width 5"),
        ([*pair("a"), ("a.regions.npz", b"junk")], "none of its 1 samples"),
        ([("a.txt", b"some text")], "Is --kind captions right"),
        ([("README", b"")], "Is --kind captions right"),
    ],
)
def test_refuses_tars_that_cannot_be_trained_on(tmp_path: Path, files: Files, reason: str) -> None:
    write_tar(tmp_path / "0.tar", files)
    with pytest.raises(UserError, match=reason):
        index_folder(tmp_path, "captions")
    assert not (tmp_path / "manifest.json").exists()


def test_refuses_two_widths_over_shards(tmp_path: Path) -> None:
    for number, width in enumerate((4, 5)):
        write_tar(tmp_path / f"{number}.tar", [*pair("a"), ("a.regions.npz", regions(width))])
    with pytest.raises(UserError, match=r"4 \(0.tar\), 5 \(1.tar\)"):
        index_folder(tmp_path, "captions")


def test_needs_tars_and_a_language_for_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.tar file"):
        index_folder(tmp_path, "captions")
    with pytest.raises(UserError, match="not a folder"):
        index_folder(tmp_path / "none", "captions")
    write_tar(tmp_path / "0.tar", [("a.txt", b"text")])
    with pytest.raises(UserError, match="--language"):
        index_folder(tmp_path, "text")
    with pytest.raises(UserError, match="'german!'"):
        index_folder(tmp_path, "text", "german!")
    assert index_folder(tmp_path, "text", "de").language == "de"


def test_what_is_left_out_beside_the_tars_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("0.tar", "B.TAR", "c.tar.part", "d.tar.1", "part-1/e.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, [("a.txt", b"text")])
    (tmp_path / "f.zip").touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / "0_stats.json").touch()
    assert index_folder(tmp_path, "text", "de").samples == 1
    said = capsys.readouterr().out
    assert "not read: B.TAR, c.tar.part, d.tar.1, f.zip, part-1; read are its files NAME.tar" in said


def test_reads_the_width_without_the_array() -> None:
    assert feature_width(regions(2048)) == 2048
    assert feature_width(b"PK\x03\x04 cut off") is None
    assert feature_width(regions(0)) is None


def dangling(path: Path) -> None:
    path.symlink_to("nowhere.tar")


@pytest.mark.parametrize("make", [Path.mkdir, dangling])
def test_refuses_tars_that_are_no_files(tmp_path: Path, make: Callable[[Path], None]) -> None:
    write_tar(tmp_path / "0.tar", pair("a"))
    make(tmp_path / "1.tar")
    with pytest.raises(UserError, match=r"1\.tar is no file"):
        index_folder(tmp_path, "captions")


@pytest.mark.parametrize("name", ["a\\b.tar", os.fsdecode(b"\xff.tar")])
def test_refuses_tars_whose_names_no_manifest_can_hold(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / name, pair("a"))
    with pytest.raises(UserError, match="cannot be kept in a manifest") as caught:
        index_folder(tmp_path, "captions")
    assert repr(name) in str(caught.value)


def test_half_a_character_as_a_language_is_a_bad_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "0.tar", [*pair("a"), *pair("b", {"en": ["x"], "\ud800": ["y"]})])
    assert index_folder(tmp_path, "captions").captions == {"en": 1}
    assert "1 of 2 samples lack" in capsys.readouterr().out


def test_two_at_once_do_not_write_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3p.data.shards.index_folder.PATIENCE", 0.0)
    write_tar(tmp_path / "0.tar", pair("a"))
    with (tmp_path / PROGRESS).open("a") as progress:
        fcntl.flock(progress, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another `m3p index` is at work"):
            index_folder(tmp_path, "captions")
    assert index_folder(tmp_path, "captions").samples == 1
    assert not (tmp_path / PROGRESS).exists()


def test_the_processes_of_a_call_that_was_killed_have_a_moment_to_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pair("a"))
    progress = (tmp_path / PROGRESS).open("a")
    fcntl.flock(progress, fcntl.LOCK_EX)
    threading.Timer(0.2, progress.close).start()
    assert index_folder(tmp_path, "captions").samples == 1


@pytest.mark.parametrize(
    "content",
    [b"5", b"\xff\xfe", b'["NAME","captions","en",{"samples":1}]', b'["NAME","captions","en",{"samples":"x"}]'],
)
def test_progress_that_is_none_starts_afresh(tmp_path: Path, content: bytes) -> None:
    write_tar(tmp_path / "0.tar", pair("a"))
    found = index_folder(tmp_path, "captions")
    name = _name(tmp_path / "0.tar").encode()
    (tmp_path / PROGRESS).write_bytes(content.replace(b"NAME", name) + b"\n")
    assert index_folder(tmp_path, "captions") == found


@pytest.mark.parametrize("form", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_in_a_tar_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in [*pair("one"), *pair("two")[1:]]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name in ("two.jpg", "latest"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = form, "one.jpg"
            tar.addfile(link)
    index_folder(tmp_path, "captions")
    assert "1 files of its tars are links, which are not followed" in capsys.readouterr().out


@pytest.mark.parametrize("last", [[], [("README", b"x" * 700)], [("folder/", b"")]])
def test_says_what_stands_behind_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str], last: Files) -> None:
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / name, [("a.jpg", name.encode()), ("a.txt", b"a dog"), *last])
    index_folder(tmp_path, "captions")
    assert not capsys.readouterr().out
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes() + bytes(40_000))
    (tmp_path / "1.tar").write_bytes((tmp_path / "1.tar").read_bytes() * 2)
    assert index_folder(tmp_path, "captions").samples == 2
    assert "behind the end of 1.tar stands more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "files", "better"),
    [
        ("captions", [*pair("d.x/img.1"), *pair("d.x/img.2")], "'d.x/img.1.jpg' to 'd.x/img-1.jpg'"),
        ("text", [("a.b.c.txt", b"x")], "'a.b.c.txt' to 'a-b-c.txt'"),
    ],
)
def test_dots_in_keys_are_explained(tmp_path: Path, kind: Kind, files: Files, better: str) -> None:
    write_tar(tmp_path / "0.tar", files)
    with pytest.raises(UserError, match=f"first dot of the file name: rename {better}"):
        index_folder(tmp_path, kind, "en")


def test_a_tar_that_is_cut_while_it_is_indexed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory map of it would end the process."""
    path = tmp_path / "a.tar"
    write_tar(path, [*pair("a"), ("b.jpg", bytes(3 * 2**20)), ("b.txt", b"a dog"), *pair("c")])
    real = index._Scan.note

    def cut(scan: index._Scan, member: Member, extension: str) -> None:
        if path.stat().st_size > 2**20:
            os.truncate(path, 2**20)
        real(scan, member, extension)

    monkeypatch.setattr(index._Scan, "note", cut)
    with pytest.raises(UserError, match=r"a\.tar is no whole tar: .*Copy it or make it again"):
        index_tar(path, "captions")


def test_captions_under_ids_are_not_taken_for_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MAX_LANGUAGES", 3)
    write_tar(tmp_path / "0.tar", [file for number in range(5) for file in pair(f"{number}", {f"id{number}": ["x"]})])
    with pytest.raises(
        UserError, match=r"0\.tar: captions in more than 3 languages, such as 'id3': the rule is an object"
    ):
        index_folder(tmp_path, "captions")
