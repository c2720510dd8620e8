"""Every kind of bad data: what happens, with the whole way from tar to sample in use."""

import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from m3p.data.order.shuffle import Place
from m3p.data.sample import BadSamples
from m3p.data.shards.index_folder import index_folder
from m3p.data.source import Source
from m3p.data.storage.folders import open_folder
from m3p.errors import UserError
from m3p.visual.patches import Patches
from m3p.visual.regions import Regions
from tests.data.broken import PATCHES, REGIONS, Members, pair, pairs, picture, read_many, regions, source, write
from tests.data.fuzz import fuzz
from tests.visual.pictures import png_header

GOOD = pair(3)


def without(*names: str) -> Members:
    return {name: content for name, content in GOOD.items() if name not in names}


def flipped(content: bytes) -> bytes:
    """Every seventh byte changed."""
    return bytes(byte ^ 0xFF if place % 7 == 3 else byte for place, byte in enumerate(content))


@pytest.mark.parametrize(
    ("members", "visual", "reason"),
    [
        ({**GOOD, "jpg": flipped(GOOD["jpg"])}, PATCHES, "unreadable picture"),
        ({**GOOD, "jpg": b""}, PATCHES, "unreadable picture"),
        ({**GOOD, "jpg": GOOD["jpg"][:300]}, PATCHES, "unreadable picture"),
        (
            {**without("jpg"), "png": png_header(60_000, 60_000)},
            PATCHES,
            "unreadable picture: Image size .* exceeds limit",
        ),
        ({**GOOD, "jpg": picture(size=400)}, PATCHES, "400 x 400 pixels, more than visual.max_pixels = 100000"),
        (without("jpg"), PATCHES, "no picture"),
        (without("json"), PATCHES, "json has no captions"),
        (without("regions.npz"), REGIONS, "no member regions.npz"),
        ({**GOOD, "json": GOOD["json"][:-3]}, PATCHES, "json cannot be read"),
        ({**GOOD, "json": b'{"captions": {"en": ["\xff\xfe"]}}'}, PATCHES, "json cannot be read"),
        (
            {**GOOD, "json": b'{"captions": {"en": ["  "]}}'},
            PATCHES,
            "captions.en is not a list of texts, or one of them is",
        ),
        (
            {**GOOD, "regions.npz": regions(float("nan"))},
            REGIONS,
            "NaN, infinity or a number beyond float32 in the features",
        ),
        ({**GOOD, "regions.npz": flipped(GOOD["regions.npz"])}, REGIONS, "unreadable regions.npz"),
        ({**GOOD, "regions.npz": GOOD["regions.npz"][:400]}, REGIONS, "unreadable regions.npz"),
    ],
)
def test_a_bad_sample_is_named_and_replaced_alike_for_all_who_meet_it(
    tmp_path: Path, members: Members, visual: Regions | Patches, reason: str
) -> None:
    folder = pairs(tmp_path / "shards", members)
    made, bad = source(folder, visual), BadSamples([])
    found = made.read_place(Place(0, 0, 3), bad, augment=True)
    assert found.name == f"{folder}/a.tar/4"
    assert len(bad.seen) == 1
    assert re.fullmatch(rf"{folder}/a\.tar, sample 3: .*{reason}.*", bad.seen[0]), bad.seen
    # Another process, or another part of a micro-batch, takes the same one, with the same choices.
    together = read_many(source(tmp_path / "shards", visual), 6, BadSamples([]))
    alone = [source(tmp_path / "shards", visual).read(index, BadSamples([])) for index in range(6)]
    assert [sample.owner for sample in together] == [sample.owner for sample in alone]
    assert sorted(sample.name for sample in together).count(f"{folder}/a.tar/4") == 2


class Bomb:
    """What a pickle does to whoever loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pth", "py", "cls", "regions.npz"])
def test_nothing_in_a_shard_is_executed(tmp_path: Path, extension: str) -> None:
    trace = tmp_path / "executed"
    payload = pickle.dumps(Bomb(trace))
    folder = pairs(tmp_path / "shards", {**GOOD, extension: payload})
    for visual in (PATCHES, REGIONS):
        bad = BadSamples([])
        made = source(folder, visual)
        names = [made.read(index, bad).name for index in range(12)]
        assert len(names) == 12
    assert not trace.exists()


def test_object_arrays_in_regions_are_not_unpickled(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    content = np.empty(1, object)
    content[0] = Bomb(trace)
    with (tmp_path / "bomb.npz").open("wb") as file:
        np.savez(file, boxes=content, features=content, class_ids=content)
    folder = pairs(tmp_path / "shards", {**GOOD, "regions.npz": (tmp_path / "bomb.npz").read_bytes()})
    bad = BadSamples([])
    source(folder, REGIONS).read_place(Place(0, 0, 3), bad, augment=False)
    assert "unreadable regions.npz" in bad.seen[0]
    assert not trace.exists()


@pytest.mark.long
@pytest.mark.parametrize("key", ["../../outside", "/tmp/outside", "a/../../b", "C:\\x", "\x1b[31m", "~/x", "x" * 88])
def test_names_are_keys_and_never_paths(tmp_path: Path, key: str) -> None:
    before = sorted(path for path in tmp_path.parent.rglob("*") if "outside" in path.name)
    folder = pairs(tmp_path / "shards", GOOD, key=key)
    bad = BadSamples([])
    made = source(folder)
    assert len({made.read(index, bad).name for index in range(6)}) == 6
    assert bad.seen == []
    assert sorted(path for path in tmp_path.parent.rglob("*") if "outside" in path.name) == before


def test_a_pipe_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="commands are never run"):
        open_folder(f"pipe:touch {tmp_path}/executed", None, "objectives.x.sources.0.path")
    assert not (tmp_path / "executed").exists()


def test_a_truncated_tar_is_refused_by_the_index_and_at_the_start(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "shards", GOOD)
    tar = folder / "a.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:5000])
    with pytest.raises(UserError, match=r"a.tar is no whole tar: .*Copy it or make it again"):
        index_folder(folder, "captions")
    tar.write_bytes(whole)
    index_folder(folder, "captions")
    tar.write_bytes(whole[:-700])
    with pytest.raises(
        UserError, match=r"a.tar has [\d,]+ bytes but was indexed with [\d,]+ \(truncated, or changed since\)"
    ):
        source(folder)


def test_a_tar_cut_while_it_is_read_gives_bad_samples(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "shards", GOOD)
    made, bad = source(folder), BadSamples([])
    made.read(0, bad)
    os.truncate(folder / "a.tar", int(np.load(folder / "a.idx")[4]) + 100)
    whole = {f"{folder}/a.tar/{number}" for number in range(4)}
    assert {made.read(index, bad).name for index in range(6)} <= whole
    assert {sample.name for sample in read_many(made, 6, bad)} <= whole
    assert {re.sub(r".*: ", "", line) for line in bad.seen} >= {line.partition(": ")[2] for line in bad.seen[:1]}
    assert all("truncated since it was indexed" in line for line in bad.seen)


def test_a_duplicate_key_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder / "a.tar", [("1", pair(0)), ("2", pair(1)), ("1", pair(2))])
    with pytest.raises(UserError, match=r"the members of sample '1' are not side by side, or the key comes twice"):
        index_folder(folder, "captions")


def test_a_shard_packed_again_with_the_same_size_is_refused_by_name(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "shards", GOOD)
    other = tmp_path / "other"
    other.mkdir()
    write(other / "a.tar", [(str(number), pair(5 - number)) for number in range(6)])
    content = (other / "a.tar").read_bytes()[: (folder / "a.tar").stat().st_size]
    (folder / "a.tar").write_bytes(content.ljust((folder / "a.tar").stat().st_size, b"\0"))
    with pytest.raises(UserError, match=r"a\.tar holds other samples than those that were indexed"):
        source(folder).read(0, BadSamples([]))


def test_one_damaged_sample_of_a_shard_is_no_other_shard(tmp_path: Path) -> None:
    folder, bad = pairs(tmp_path / "shards", GOOD), BadSamples([])
    content = bytearray((folder / "a.tar").read_bytes())
    first = int(np.load(folder / "a.idx")[2])
    content[first : first + 600] = bytes(600)
    (folder / "a.tar").write_bytes(content)
    made = source(folder)
    found = {made.read(index, bad).id for index in range(6)}
    assert "2" not in found
    assert len(bad.seen) == 1


def test_text_that_is_empty_or_no_text_is_bad(tmp_path: Path) -> None:
    write(
        tmp_path / "a.tar",
        [("0", {"txt": b"\xff\xfe"}), ("1", {"txt": b" \n"}), ("2", {"json": b"{}"}), ("3", {"txt": b"x"})],
    )
    index_folder(tmp_path, "text", "en")
    made, bad = source(tmp_path, None), BadSamples([])
    assert [made.read_place(Place(0, 0, number), bad, augment=True).text for number in range(4)] == ["x"] * 4
    assert [line.removeprefix(f"{tmp_path}/a.tar, ") for line in bad.seen] == [
        "sample 0: txt is not UTF-8 (invalid start byte)",
        "sample 1: an empty text",
        "sample 2: no member txt",
    ]


def passages(folder: Path, shards: Sequence[Sequence[bytes]]) -> Source:
    """Write shards of passages and open them."""
    folder.mkdir()
    for number, texts in enumerate(shards):
        write(folder / f"{number:02d}.tar", [(f"{place:04d}", {"txt": text}) for place, text in enumerate(texts)])
    index_folder(folder, "text", "en")
    return source(folder, None)


def test_bad_samples_side_by_side_count_once_each(tmp_path: Path) -> None:
    made, bad = passages(tmp_path / "text", [[b"good", *[b" "] * 8, *[b"good"] * 11]]), BadSamples([])
    indices = np.arange(20)
    assert made.read_many(indices).records == ["good"] * 20
    assert [made.read(index, bad).text for index in indices.tolist()] == ["good"] * 20
    assert sorted(bad.seen) == [f"{tmp_path}/text/00.tar, sample {number}: an empty text" for number in range(1, 9)]
    assert sorted(message for message in made.read_many(indices).messages) == sorted(bad.seen)


def test_a_shard_without_a_good_sample_is_replaced_from_the_next_ones(tmp_path: Path) -> None:
    made, bad = passages(tmp_path / "text", [[b"a", b"b"], [b" "] * 30, [], [b" "], [b"c", b"d"]]), BadSamples([])
    assert [made.read_place(Place(0, 1, number), bad, augment=True).text for number in (0, 29)] == ["c", "c"]
    assert made.read_place(Place(0, 3, 0), bad, augment=True).text == "c"
    assert [line.partition(": ")[0].rpartition("/")[2] for line in bad.seen] == [
        "01.tar, sample 0",
        "01.tar, sample 29",
        "03.tar, sample 0",
    ]


def test_a_source_without_a_good_sample_is_given_up(tmp_path: Path) -> None:
    # The index takes no folder without a good one; this one lies behind all that are tried.
    made = passages(tmp_path / "text", [*[[b" "] * 30] * 19, [*[b" "] * 30, b"good"]])
    with pytest.raises(
        UserError, match=r"text: 101 bad samples in a row; the last: .*09\.tar, sample 9: an empty text\. "
    ):
        made.read_place(Place(0, 0, 0), BadSamples([]), augment=True)
    (tmp_path / "lone").mkdir()
    write(tmp_path / "lone" / "00.tar", [("0", {**pair(), "jpg": b"no picture"})])
    index_folder(tmp_path / "lone", "captions")  # which decodes no picture
    lone = source(tmp_path / "lone")
    with pytest.raises(UserError, match=r"lone: 1 bad samples in a row; the last: .*00\.tar, sample 0: "):
        lone.read_place(Place(0, 0, 0), BadSamples([]), augment=True)


@pytest.mark.long
def test_300_mutated_shards_end_without_a_crash_or_a_hang(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 300, seed=0) == 300
