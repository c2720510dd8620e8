"""Records that name the language of their captions in a field of its own: every importer takes it, whatever the command says."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3p.errors import UserError
from m3p.prepare.side_files import CaptionTable, SideFile
from tests.prepare.sets.raw import picture, run, stored

Captions = list[dict[str, list[str]]]


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


def _open_clip(folder: Path, language: str | None) -> Captions:
    lines = ["filepath\ttitle\tlanguage", *(f"p{n}.jpg\t{text}\t{of}" for n, of, text in ROWS)]
    (folder / "a.csv").write_text("\n".join(lines) + "\n")
    return _stored(folder, "open-clip", folder / "a.csv", *_option(language))


@pytest.mark.parametrize("language", [None, "de"])
@pytest.mark.parametrize("read", [_captions, _parquet, _side_file, _open_clip])
def test_captions_are_in_the_language_that_their_record_says(
    tmp_path: Path, read: Callable[[Path, str | None], Captions], language: str | None
) -> None:
    for number in range(2):
        picture(tmp_path / f"p{number}.jpg", 90 * number)
    assert read(tmp_path, language) == [{"de": ["ein Hund"]}, {"cs": ["kočka"]}]
