"""Records that name the language of their captions in a field of its own: taken, and never stored as another."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3p.errors import UserError
from m3p.prepare.row_language import language_mistake, own_language
from m3p.prepare.side_files import CaptionTable, SideFile
from tests.prepare.sets.raw import picture, run, stored

Captions = list[dict[str, list[str]]]


def test_what_a_record_says_and_what_is_compared() -> None:
    assert own_language({"language": "pt_BR"}) == "pt-BR"
    assert own_language({"LANGUAGE": "de", "lang": ""}) == "de"
    assert own_language({"language": "German", "lang": 3}) is None
    assert "its language is cs, and its captions are to be in de" in language_mistake({"lang": "cs"}, "de")
    for own, told in (("en-US", "en"), ("EN", "en"), ("eng", "en"), ("English", "de"), ("cs", None)):
        assert not language_mistake({"language": own}, told), (own, told)


def _captions(folder: Path, language: str | None) -> Captions:
    records = [{"id": f"p{n}", "image": f"p{n}.jpg", "caption": text, "language": of} for n, of, text in ROWS]
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return _stored(folder, "captions", folder / "a.jsonl", *_option(language))


def _parquet(folder: Path, language: str | None) -> Captions:
    images = [(folder / f"p{n}.jpg").read_bytes() for n, _, _ in ROWS]
    columns = {"language": [of for _, of, _ in ROWS], "caption": [text for _, _, text in ROWS]}
    pq.write_table(pa.table({"image": images, **columns}), folder / "a.parquet")
    return _stored(folder, "parquet", folder / "a.parquet", *_option(language))


def _side_file(folder: Path, language: str | None) -> Captions:
    lines = ["url\tlang\tcaption", *(f"u{n}\t{of}\t{text}" for n, of, text in ROWS)]
    (folder / "a.tsv").write_text("\n".join(lines) + "\n")
    (folder / "table").unlink(missing_ok=True)
    with CaptionTable(folder / "table", "url") as table:
        if bad := table.add([SideFile(folder / "a.tsv", language)]):
            raise UserError("; ".join(mistake for mistakes in bad.values() for mistake in mistakes))
        return [table.captions(f"u{n}") for n, _, _ in ROWS]


ROWS = [(0, "de", "ein Hund"), (1, "cs", "kočka")]


def _option(language: str | None) -> tuple[str, ...]:
    return () if language is None else ("--language", language)


def _stored(folder: Path, command: str, *words: object) -> Captions:
    run(command, *words, output=folder / "out")
    return [record["captions"] for record in stored(folder / "out").values()]


@pytest.mark.parametrize("read", [_captions, _parquet, _side_file])
def test_the_field_says_the_language_and_another_one_is_a_mistake(
    tmp_path: Path, read: Callable[[Path, str | None], Captions]
) -> None:
    for number in range(2):
        picture(tmp_path / f"p{number}.jpg", 90 * number)
    with pytest.raises(UserError, match="its language is cs, and its captions are to be in de") as caught:
        read(tmp_path, "de")
    assert "its language is de" not in str(caught.value)
    assert read(tmp_path, None) == [{"de": ["ein Hund"]}, {"cs": ["kočka"]}]


def test_a_table_of_open_clip_is_in_the_language_that_it_says(tmp_path: Path) -> None:
    picture(tmp_path / "p0.jpg", 90)
    (tmp_path / "a.csv").write_text("filepath\ttitle\tlanguage\np0.jpg\tein Hund\tde\n")
    with pytest.raises(UserError, match=r"line 2: it says itself that its language is de, .* in en"):
        run("open-clip", tmp_path / "a.csv", output=tmp_path / "out")
    run("open-clip", tmp_path / "a.csv", "--language", "de", output=tmp_path / "out")
