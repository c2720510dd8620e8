"""The CSV file that open_clip trains on: a path and a caption a line, separated by tabs, under the names filepath and title."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from m3p.data.records import find_captions
from m3p.data.shards.manifest import NOT_STATED
from m3p.errors import UserError
from m3p.prepare.pairs import Entry
from m3p.prepare.published import Published, origin_of
from m3p.prepare.tables import open_table

LANGUAGE_FIELDS = ("language", "lang")
"""Columns that say in which language a line is: data/records.py."""


def open_clip(
    source: Annotated[Path, typer.Argument(metavar="FILE.csv", help="With a line of names first.")],
    language: Annotated[str, typer.Option(help="Language of the captions.")] = "en",
    path_column: Annotated[
        str, typer.Option(help="Name of the column of paths (open_clip: --csv-img-key).")
    ] = "filepath",
    caption_column: Annotated[str, typer.Option(help="Name of the column of captions (--csv-caption-key).")] = "title",
    separator: Annotated[str, typer.Option(help="Between columns (--csv-separator).")] = "\t",
) -> Published:
    """A CSV file of open_clip to shards; lines of one path are one picture with several captions."""
    separator = separator.replace("\\t", "\t")
    if len(separator) != 1:
        raise UserError(f"--separator {separator!r}: the rule is one character, such as , or \\t")
    entries = _entries(source, language, path_column, caption_column, separator)
    origin = origin_of("open_clip", NOT_STATED, file=source.name)
    return Published(str(source), entries, origin, language, images=source.parent)


def _entries(source: Path, language: str, path_column: str, caption_column: str, separator: str) -> Iterator[Entry]:
    """Yield a record a picture, and one for each line that is wrong. Raises UserError for a file that lacks a column."""
    captions: dict[str, dict[str, list[object]]] = {}
    first: dict[str, int] = {}
    wanted = f"give open_clip's CSV file, with the columns {path_column} and {caption_column}"
    with open_table(source, separator, wanted) as table:
        if missing := [name for name in (path_column, caption_column) if name not in table.names]:
            raise UserError(
                f"{source} has no column {' and no column '.join(missing)}; it has {', '.join(map(repr, table.names[:12]))}: "
                "name them with --path-column and --caption-column, and what stands between with --separator."
            )
        for line, row in table.rows:
            if isinstance(row, str):
                yield Entry(f"line {line}", row)
                continue
            path = row.get(path_column, "")
            first.setdefault(path, line)
            said = {name: value for name, value in row.items() if name.lower() in LANGUAGE_FIELDS}
            for code, text in find_captions({**said, "caption": row.get(caption_column, "")}, {}, language)[0].items():
                captions.setdefault(path, {}).setdefault(code, []).append(text)
    for path, by_language in captions.items():
        yield Entry(f"line {first[path]}", {"id": path, "image": path, "captions": by_language})
