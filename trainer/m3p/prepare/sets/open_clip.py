"""The CSV file that open_clip trains on: a path and a caption a line, separated by tabs, under the names filepath and title."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from m3p.data.shards.manifest import NOT_STATED
from m3p.errors import UserError
from m3p.prepare.lines import open_text
from m3p.prepare.pairs import Entry
from m3p.prepare.published import Published, origin_of


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
    entries = _entries(source, language, path_column, caption_column, separator.replace("\\t", "\t"))
    origin = origin_of("open_clip", NOT_STATED, file=source.name)
    return Published(str(source), entries, origin, language, images=source.parent)


def _entries(source: Path, language: str, path_column: str, caption_column: str, separator: str) -> Iterator[Entry]:
    """Yield a record a picture. Raises UserError for a file that lacks a column."""
    captions: dict[str, list[str]] = {}
    first: dict[str, int] = {}
    with open_text(source, f"give open_clip's CSV file, with the columns {path_column} and {caption_column}") as file:
        rows = csv.DictReader(file, delimiter=separator)
        names = rows.fieldnames or []
        if missing := [name for name in (path_column, caption_column) if name not in names]:
            raise UserError(
                f"{source} has no column {' and no column '.join(missing)}; it has {', '.join(map(repr, names[:12]))}: name them "
                "with --path-column and --caption-column, and what stands between with --separator."
            )
        for row in rows:
            path = row[path_column]
            first.setdefault(path, rows.line_num)
            captions.setdefault(path, []).append(row[caption_column] or "")
    for path, texts in captions.items():
        yield Entry(f"line {first[path]}", {"id": path, "image": path, "captions": {language: texts}})
