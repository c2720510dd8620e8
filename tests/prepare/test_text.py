import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p.data.shards.index import members
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
    (raw / "de.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"de\.txt holds no text"):
        prepare_text(raw, output)
    assert not output.exists()
