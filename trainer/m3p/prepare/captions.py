"""Captioned pictures from a JSONL file to shards."""

import json
from collections.abc import Iterator
from pathlib import Path

from m3p.data.shards.manifest import Manifest
from m3p.errors import UserError
from m3p.prepare.lines import check_no_document, check_no_table, numbered_lines
from m3p.prepare.pairs import Entry, Options, write_pairs
from m3p.prepare.pictures import PictureFolder


def prepare_captions(
    source: Path, output: Path, options: Options | None = None
) -> tuple[Manifest, dict[str, list[str]]]:
    """Write the records of the JSONL file `source` as shards into the folder `output`; pictures are in its folder by default.

    Returns and raises as `write_pairs` does.
    """
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "does not exist"
        raise UserError(f"{source} {what}: give a JSONL file, one record a line.")
    return write_pairs(str(source), read_jsonl(source), output, options or Options(PictureFolder(source.parent)))


def read_jsonl(source: Path) -> Iterator[Entry]:
    """Yield the records of the lines that are not blank. Raises UserError as `numbered_lines` does."""
    first = True
    for number, line in numbered_lines(source):
        if not line.strip():
            continue
        if first:
            check_no_document(source, number, line, "with id, image and captions")
            check_no_table(source, number, line)
            first = False
        where = f"line {number}"
        try:
            record = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            yield Entry(where, f"broken JSON: {error}")
            continue
        if isinstance(record, dict):
            yield Entry(where, record)
        else:
            yield Entry(
                where, f"the record is {type(record).__name__}; the rule is an object with id, image and captions"
            )


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the fields of an object. Raises ValueError where one stands in it twice: Python would keep the last alone."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise ValueError(f"the field {twice!r} stands twice in one object")
    return fields
