"""img2dataset's tars with captions from files beside them, and CLIP_benchmark's: linked, never written again."""

import gzip
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from m3p.data.identity import Gallery
from m3p.data.sample import BadSamples
from m3p.data.shards.index_folder import index_folder
from m3p.data.shards.manifest import Manifest
from m3p.data.shards.side_captions import SideCaptions
from m3p.data.shards.tar_samples import shown_samples, tar_samples
from m3p.errors import BadSample, UserError
from m3p.prepare.linked import link_shards
from m3p.prepare.side_files import CaptionTable, SideFile
from tests.data.broken import picture, source, write
from tests.prepare.sets.raw import origin, run

URLS = [f"https://example.org/{number}.jpg" for number in range(5)]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Five pictures in two tars, as img2dataset writes them."""
    folder = tmp_path / "cc3m"
    folder.mkdir()
    samples = []
    for number, url in enumerate(URLS):
        fields = {"url": url, "key": f"{number:09d}", "caption": f"picture {number}", "status": "success"}
        files = {
            "jpg": picture(size=20 + number),
            "json": json.dumps(fields).encode(),
            "txt": f"picture {number}".encode(),
        }
        samples.append((f"{number:09d}", files))
    write(folder / "00000.tar", samples[:3])
    write(folder / "00001.tar", samples[3:])
    return folder


def translations(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def captions(folder: Path) -> dict[str, dict[str, list[str]]]:
    made = source(folder)
    return {sample.id: sample.captions for sample in (made.read(index, BadSamples([])) for index in range(5))}


def test_captions_of_a_file_stand_in_the_place_of_those_in_the_tars(tars: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in tars.iterdir()}
    lines = [
        {"url": url, "caption": {"de": f"Bild {n}", "cs": f"obraz {n}"}} for n, url in enumerate(URLS)
    ]  # CCLM's form
    file = translations(tmp_path / "cc3m.jsonl", *reversed(lines), {"url": "https://elsewhere", "caption": {"de": "x"}})
    said = run("cc3m", tars, "--captions", file, output=tmp_path / "out")
    assert "captions of 5 pictures; 1 belong to no picture" in said
    assert captions(tmp_path / "out") == {f"{n:09d}": {"de": [f"Bild {n}"], "cs": [f"obraz {n}"]} for n in range(5)}
    assert origin(tmp_path / "out") == {
        "set": "cc3m", "caption_source": "machine translation", "licence": "not stated", "captions_per_picture": "1",
    }  # fmt: skip
    assert {path.name: path.read_bytes() for path in tars.iterdir()} == before, "the tars are only read"
    assert (tmp_path / "out" / "00000.tar").is_symlink()
    shown = list(shown_samples(tmp_path / "out" / "00001.tar"))
    assert [sorted(sample.members) for sample in shown] == [["jpg", "json"]] * 2  # what `m3p prepare features` stores


def test_a_table_a_language_and_the_tars_own_captions(tars: Path, tmp_path: Path) -> None:
    (tmp_path / "de.tsv.gz").write_bytes(gzip.compress(f"caption\turl\nBild 1\t{URLS[1]}\n".encode()))
    (tmp_path / "ja.csv").write_text(f"url,title\n{URLS[1]},絵 1\n{URLS[2]},絵 2\n")
    files = ("--captions", f"de={tmp_path / 'de.tsv.gz'}", "--captions", f"ja={tmp_path / 'ja.csv'}")
    said = run("cc3m", tars, *files, "--keep-own", output=tmp_path / "out")
    assert "3 of 5 pictures are not in" in said
    found = captions(tmp_path / "out")
    assert found["000000001"] == {"en": ["picture 1"], "de": ["Bild 1"], "ja": ["絵 1"]}
    assert found["000000000"] == {"en": ["picture 0"]}
    assert origin(tmp_path / "out")["caption_source"] == "web and machine translation"
    said = run("cc3m", tars, *files, output=tmp_path / "without")
    assert "have no caption: training skips them" in said
    assert Manifest.load(tmp_path / "without").captions == {"de": 1, "ja": 2}


def test_pictures_are_found_by_the_key_too(tars: Path, tmp_path: Path) -> None:
    file = translations(tmp_path / "de.jsonl", *({"key": f"{n:09d}", "caption_de": f"Bild {n}"} for n in range(5)))
    run("cc12m", tars, "--captions", file, "--by", "key", output=tmp_path / "out")
    assert captions(tmp_path / "out")["000000004"] == {"de": ["Bild 4"]}


def test_names_and_fields_that_are_not_unicode_have_no_captions_in_the_files(tmp_path: Path) -> None:
    name, folder = os.fsdecode(b"caf\xe9"), tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w", errors="surrogateescape") as made:
        for key, url in ((name, "u"), ("b", "v"), ("c", "\\ud800")):
            files = {"jpg": picture(size=20 + len(url)), "json": f'{{"url": "{url}", "caption": "x"}}'.encode()}
            for ending, content in files.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                made.addfile(member, io.BytesIO(content))
    by_url = translations(
        tmp_path / "url.jsonl", {"url": "u", "caption_de": "Hund"}, {"url": "v", "caption_de": "Katze"}
    )
    run("cc3m", folder, "--captions", by_url, output=tmp_path / "url")
    made_of = source(tmp_path / "url")
    found = {sample.id: sample.captions for sample in (made_of.read(index, BadSamples([])) for index in range(3))}
    assert found == {"caf\\udce9": {"de": ["Hund"]}, "b": {"de": ["Katze"]}}
    by_key = translations(tmp_path / "key.jsonl", {"key": "b", "caption_de": "Katze"})
    said = run("cc12m", folder, "--captions", by_key, "--by", "key", output=tmp_path / "key")
    assert "2 of 3 pictures are not in" in said


@pytest.mark.long
def test_wrong_files_of_captions_are_told(tars: Path, tmp_path: Path) -> None:
    twice = [{"url": URLS[0], "caption": {"de": text}} for text in ("eins", "zwei")]
    others = [
        {"link": URLS[1], "caption": "ein Bild"},
        {"url": URLS[2], "caption": "ein Bild"},
        {"url": URLS[3], "caption": {"de": ""}},
    ]
    file = translations(tmp_path / "x.jsonl", *twice, *others)
    with pytest.raises(UserError) as told:
        run("cc3m", tars, "--captions", file, output=tmp_path / "out")
    message = str(told.value)
    assert f"line 2: url '{URLS[0]}' has a caption in de in x.jsonl, line 1 already" in message
    assert (
        "line 3: url is None; the rule is a text or number by which a picture is found (--by); it has 'link'" in message
    )
    assert "line 4: json has no captions by language" in message
    assert "name the language as LANG=FILE" in message
    assert "line 5: caption de is ['']" in message or "line 5: caption de is ''" in message
    assert not (tmp_path / "out").exists()
    run("cc3m", tars, "--captions", file, "--skip-bad", output=tmp_path / "out")
    assert Manifest.load(tmp_path / "out").captions == {"de": 1}
    elsewhere = translations(tmp_path / "y.jsonl", {"url": "https://elsewhere", "caption": {"de": "x"}})
    with pytest.raises(
        UserError, match=r"none of their 1 values of url is that of a picture of .*, which has 'https://example"
    ):
        run("cc3m", tars, "--captions", elsewhere, output=tmp_path / "none")
    with pytest.raises(UserError, match=r"give a file of JSON lines \(\.jsonl\), or a table"):
        run("cc3m", tars, "--captions", tmp_path / "x.txt", output=tmp_path / "none")
    for option in ("--keep-own", "--skip-bad"):
        with pytest.raises(UserError, match=f"{option}: goes with --captions FILE; leave it out"):
            run("cc3m", tars, option, output=tmp_path / "none")
    run("cc3m", tars, output=tmp_path / "left out")
    with pytest.raises(UserError, match=r"holds no \.tar file"):
        run("cc3m", tmp_path, output=tmp_path / "none")


def test_captions_that_changed_since_they_were_indexed_are_refused(tars: Path, tmp_path: Path) -> None:
    file = translations(tmp_path / "de.jsonl", *({"url": url, "caption": {"de": "Bild"}} for url in URLS))
    run("cc3m", tars, "--captions", file, output=tmp_path / "out")
    side = tmp_path / "out" / "00001.captions"
    stored = side.read_text()
    side.write_text(stored.replace("Bild", "Blid"))
    with pytest.raises(UserError, match=r"the captions beside 00001\.tar are not those that were indexed"):
        captions(tmp_path / "out")
    side.unlink()
    with pytest.raises(UserError, match=r"captions beside 00001\.tar: .*No such file"):
        captions(tmp_path / "out")
    side.write_text(stored + "{}\n")
    with pytest.raises(UserError, match="has 3 lines, and its tar 2 samples"):
        index_folder(tmp_path / "out", "captions")


def test_a_file_cut_short_while_it_is_read_is_a_bad_sample(tmp_path: Path) -> None:
    (tmp_path / "a.captions").write_bytes(b'{"captions": {"en": ["a"]}}\n\n')
    side = SideCaptions(tmp_path / "a.captions")
    assert side.over(0, {"jpg": b"", "txt": b"b", "de.txt": b"c"}) == {
        "jpg": b"",
        "json": b'{"captions": {"en": ["a"]}}',
    }
    assert side.over(1, {"jpg": b"", "txt": b"b"}) == {"jpg": b""}
    (tmp_path / "a.captions").write_bytes(b"{")
    with pytest.raises(BadSample, match="has changed since the run began"):
        side.line(0)
    side.close()
    with pytest.raises(ValueError, match="does not end with a whole line"):
        SideCaptions(tmp_path / "a.captions")


def test_tars_of_clip_benchmark_say_what_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "wds_flickr30k-de" / "test"
    folder.mkdir(parents=True)
    (folder / "nshards.txt").write_text("1\n")
    (folder.parent / "dataset_type.txt").write_text("retrieval\n")
    lines = "\n".join(f"Satz {n}" for n in range(5))
    write(folder / "0.tar", [(f"s{n:07d}", {"webp": picture("WEBP", 20 + n), "txt": lines.encode()}) for n in range(2)])
    words = ("--set", "flickr30k", "--language", "de", "--caption-source", "human")
    run("clip-benchmark", folder.parent, *words, output=tmp_path / "out")
    assert Manifest.load(tmp_path / "out").captions == {"de": 2}
    assert origin(tmp_path / "out") == {
        "set": "flickr30k", "split": "test", "caption_source": "human", "licence": "not stated", "captions_per_picture": "5",
    }  # fmt: skip
    before = Manifest.load(tmp_path / "out")
    index_folder(tmp_path / "out", "captions", "de")
    assert Manifest.load(tmp_path / "out") == before, "an index that is made again forgets nothing"
    shutil.rmtree(tmp_path / "out")
    (folder / "nshards.txt").write_text("3\n")
    with pytest.raises(UserError, match=r"test holds 1 tars, and its nshards\.txt says 3: copy the missing ones"):
        run("clip-benchmark", folder.parent, *words, output=tmp_path / "out")
    (folder.parent / "dataset_type.txt").write_text("classification\n")
    with pytest.raises(UserError, match="classes are no captions"):
        run("clip-benchmark", folder.parent, *words, output=tmp_path / "out")


def test_a_full_disk_under_the_table_of_captions_is_one(tmp_path: Path) -> None:
    (tmp_path / "de.jsonl").write_text("".join(json.dumps({"url": url, "caption": "x" * 9000}) + "\n" for url in URLS))
    with CaptionTable(tmp_path / "table", "url") as table:
        table._table.execute("PRAGMA max_page_count = 3")  # what SQLite says of a full disk too
        with pytest.raises(OSError, match=r"No space left on device.*table"):
            table.add([SideFile(tmp_path / "de.jsonl", "de")])


def test_files_that_nobody_asks_for_are_not_read_and_others_only_within_bounds(
    tars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3p.data.shards.tar_samples.LARGEST_FILE", 200)
    found = [set(sample.members) for sample in tar_samples(tars / "00000.tar", lambda extension: extension == "txt")]
    assert found == [{"txt"}] * 3
    with pytest.raises(
        UserError, match=r"00000\.tar: 000000000\.jpg has \d+ bytes; the rule is at most 200: take it out"
    ):
        list(tar_samples(tars / "00000.tar"))


@pytest.mark.long
def test_pictures_of_a_test_are_left_out_and_only_their_tar_is_written_again(tars: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    jpg = next(tar_samples(tars / "00000.tar")).members["jpg"]
    write(tmp_path / "test" / "0.tar", [("a", {"jpg": jpg, "json": json.dumps({"captions": {"cs": ["x"]}}).encode()})])
    index_folder(tmp_path / "test", "captions")
    file = translations(
        tmp_path / "de.jsonl", *({"url": url, "caption": {"de": f"Bild {n}"}} for n, url in enumerate(URLS))
    )
    words = ("--captions", file, "--leave-out", tmp_path / "test")
    said = run("cc3m", tars, *words, output=tmp_path / "out")
    assert "1 pictures were left out" in said
    left, test = source(tmp_path / "out"), source(tmp_path / "test")
    found = {sample.id: sample.captions for sample in (left.read(index, BadSamples([])) for index in range(4))}
    assert found == {f"{n:09d}": {"de": [f"Bild {n}"]} for n in range(1, 5)}, "captions stay with their pictures"
    assert Gallery(test).in_source(left).pictures == 0
    assert [(tmp_path / "out" / name).is_symlink() for name in ("00000.tar", "00001.tar")] == [False, True]
    kept = {sample.key: sample.members for sample in tar_samples(tmp_path / "out" / "00000.tar")}
    before = {sample.key: sample.members for sample in tar_samples(tars / "00000.tar")}
    assert kept == {key: before[key] for key in sorted(before)[1:]}
    run("img2dataset", tars, output=tmp_path / "all")
    with pytest.raises(UserError, match="--leave-out: every picture of the tars"):
        link_shards(tars, tmp_path / "none", {}, "en", leave_out=[tmp_path / "all"])
