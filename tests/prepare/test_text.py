import bz2
import gzip
import itertools
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p.data.shards.sample_members import members
from m3p.errors import UserError
from m3p.prepare.text import passages, prepare_text


@given(st.text(st.characters(exclude_categories=["Cs"])).map(lambda t: " ".join(t.split())), st.integers(20, 60))
def test_passages_lose_nothing_and_keep_the_limit(paragraph: str, limit: int) -> None:
    found = list(passages(paragraph, limit))
    assert "".join(found).replace(" ", "") == paragraph.replace(" ", "")
    assert all(len(passage) <= limit for passage in found)


@pytest.mark.parametrize(
    ("paragraph", "found"),
    [
        ("One two. Three four five. Six.", ["One two.", "Three four five.", "Six."]),
        ('He said 3.5 metres. "Yes!" Then', ["He said 3.5 metres.", '"Yes!" Then']),
        ("これは長い文です。次の文はここから始まります。", ["これは長い文です。", "次の文はここから始まります。"]),
        ("words without any end of a sentence", ["words without any", "end of a sentence"]),
        ("ประโยคนี้ไม่มีช่องว่างและยาวมาก", ["ประโยคนี้ไม่มีช่องว่", "างและยาวมาก"]),
    ],
)
def test_cuts_at_sentence_ends(paragraph: str, found: list[str]) -> None:
    assert list(passages(paragraph, 20)) == found


def test_writes_a_source_a_language(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "de.txt").write_bytes("\ufeffErster  Absatz.\r\n\r\n  \r\nZweiter Absatz.".encode())
    (raw / "zh.txt").write_text("一段。\n", encoding="utf-8")
    manifests = prepare_text(raw, tmp_path / "output")
    assert {language: manifest.samples for language, manifest in manifests.items()} == {"de": 2, "zh": 1}
    assert manifests["de"].language == "de"
    offsets = np.load(tmp_path / "output" / "de" / "shard-000000.idx")
    content = (tmp_path / "output" / "de" / "shard-000000.tar").read_bytes()
    texts = [members(content[a:b])["txt"].decode() for a, b in itertools.pairwise(offsets)]
    assert texts == ["Erster Absatz.", "Zweiter Absatz."]


def texts_of(output: Path, language: str) -> list[str]:
    offsets = np.load(output / language / "shard-000000.idx")
    content = (output / language / "shard-000000.tar").read_bytes()
    return [members(content[a:b])["txt"].decode() for a, b in itertools.pairwise(offsets)]


def test_compressed_files_are_read_beside_plain_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "de.txt").write_text("Ein Satz.\n")
    for name, pack in (("fr.txt.xz", lzma.compress), ("cs.txt.gz", gzip.compress), ("fi.txt.bz2", bz2.compress)):
        (raw / name).write_bytes(pack(f"{name} one\n{name} two\n".encode()))
    (raw / "notes.md").touch()
    found = prepare_text(raw, tmp_path / "output")
    assert {language: manifest.samples for language, manifest in found.items()} == {"de": 1, "fr": 2, "cs": 2, "fi": 2}
    assert texts_of(tmp_path / "output", "fr") == ["fr.txt.xz one", "fr.txt.xz two"]
    assert "not read: notes.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "fr.txt.zst",
            b"\x28\xb5\x2f\xfd",
            r"fr\.txt\.zst: this compression is not read: unpack, or compress with gzip or xz",
        ),
        (
            "fr.txt.gz",
            gzip.compress(b"Une phrase.\n" * 99, mtime=0)[:-20],
            r"fr\.txt\.gz, after line \d+: cannot be unpacked .*copy it again",
        ),
        ("fr.txt.xz", b"no xz at all", r"fr\.txt\.xz, after line 0: cannot be unpacked"),
        (
            "de.txt.gz",
            gzip.compress(b"Ein Satz.\n", mtime=0),
            r"holds de\.txt and de\.txt\.gz: they are one language; keep one",
        ),
        (
            "fr.txt",
            b'{"id": 1, "content": "Une phrase."}\n',
            r"fr\.txt, line 1: a JSON object with the fields 'id', 'content'",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "de.txt").write_text("Ein Satz.\n")
    (raw / name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        prepare_text(raw, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_what_wikiextractor_and_others_write_is_read_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    article = '<doc id="12" url="https://x/?curid=12" title="Hund">\nHund\n\nDer Hund bellt.\n\n</doc>\n'
    (raw / "de.txt").write_text(article * 2)
    record = {"id": 1, "url": "x", "text": "First one.\nSecond one."}
    (raw / "en.txt").write_text(json.dumps(record) + "\n" + json.dumps(record) + "\n{not json}\n")
    prepare_text(raw, tmp_path / "output")
    assert texts_of(tmp_path / "output", "de") == ["Hund", "Der Hund bellt."] * 2
    assert texts_of(tmp_path / "output", "en") == ["First one.", "Second one."] * 2 + ["{not json}"]
    said = capsys.readouterr().out
    assert "de.txt: 4 lines <doc ...> and </doc> (WikiExtractor's) were left out" in said
    assert "en.txt: 2 lines are JSON objects, of which the field text was read; not read: id, url" in said


def test_mistakes_are_named(tmp_path: Path) -> None:
    raw, output = tmp_path / "raw", tmp_path / "output"
    raw.mkdir()
    with pytest.raises(UserError, match=r"holds no LANG\.txt"):
        prepare_text(raw, output)
    (raw / "my notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"my notes\.txt: the rule is LANG\.txt"):
        prepare_text(raw, output)
    (raw / "my notes.txt").rename(raw / "de.txt")
    (raw / "en.txt").mkdir()
    with pytest.raises(UserError, match=r"en\.txt: the rule is a text file"):
        prepare_text(raw, output)
    (raw / "en.txt").rmdir()
    (raw / "de.txt").write_bytes(b"gut\nschlecht \xe4\n")
    with pytest.raises(UserError, match=r"de\.txt, line 2: byte 10 is not valid UTF-8"):
        prepare_text(raw, output)
    (raw / "de.txt").write_text('{"text": "gut"}\n{"text": "\\ud800"}\n')
    with pytest.raises(UserError, match=r"de\.txt, line 2: its text holds half a character"):
        prepare_text(raw, output)
    (raw / "de.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"de\.txt holds no text"):
        prepare_text(raw, output)
    assert not output.exists()
