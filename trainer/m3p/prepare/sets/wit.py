"""WIT: pictures of Wikipedia with texts in 108 languages (arXiv 2103.01913), in its own TSV files or IGLUE's JSON lines.

wit_v1.train.all-00000-of-00010.tsv.gz   a line of names first: language, page_url, image_url, ..., caption_reference_description,
                                         caption_attribution_description, caption_alt_text_description, ...
test_da.jsonl                            {"image_url", "caption_reference_description", "language", "image_idx", "wit_ix", ...}

Neither says how the pictures' files are called. They are looked for under the last part of their URL, as it is and decoded,
and under IGLUE's numbers.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import typer

from m3p.errors import UserError
from m3p.prepare.captions import read_jsonl
from m3p.prepare.lines import plain_name
from m3p.prepare.pairs import Entry
from m3p.prepare.published import WEB, Published, origin_of
from m3p.prepare.tables import open_table
from m3p.terminal import say

Text = Literal["reference", "attribution", "alt_text"]
WANTED = "give WIT's TSV files, or IGLUE's JSON lines"
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def wit(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="wit_v1.*.tsv(.gz), or IGLUE's *.jsonl.")],
    languages: Annotated[
        list[str] | None, typer.Option("--language", help="Only this one; may be given again.")
    ] = None,
    text: Annotated[
        Text, typer.Option(help="Which description is the caption; lines without it are left out.")
    ] = "reference",
    split: Annotated[str, typer.Option(help="As the manifest is to say it.")] = "",
) -> Published:
    """WIT's pictures with their descriptions in all languages, or those named; lines of one URL are one picture."""
    entries = _entries(files, None if languages is None else set(languages), f"caption_{text}_description")
    name = str(files[0]) if len(files) == 1 else f"{len(files)} files of WIT"
    return Published(name, entries, origin_of("wit", WEB, split, "CC BY-SA 3.0", text=text))


def _entries(files: list[Path], languages: set[str] | None, column: str) -> Iterator[Entry]:
    """Yield a record a picture, with its captions by language, and one for each line that is wrong."""
    captions: dict[str, dict[str, list[str]]] = {}
    first: dict[str, tuple[str, Any]] = {}
    empty = 0
    for path in files:
        for where, row in _rows(path):
            if isinstance(row, str):
                yield Entry(where, row)
                continue
            url, language, caption = row.get("image_url"), row.get("language"), row.get(column)
            if not (url and language and isinstance(url, str) and isinstance(language, str)):
                yield Entry(
                    where, f"image_url is {url!r} and language {language!r}; the rule is that a line of WIT has both"
                )
            elif languages is not None and language not in languages:
                continue
            elif not caption:
                empty += 1
            else:
                texts = captions.setdefault(url, {}).setdefault(language, [])
                if caption not in texts:  # one picture on several pages
                    texts.append(caption)
                first.setdefault(url, (where, row))
    if empty:
        say(f"{empty:,} lines have no {column} and are left out.")
    for url, by_language in captions.items():
        where, row = first[url]
        yield Entry(
            where, {"id": url, "image": _images(url, row), "captions": by_language, "published_id": f"wit/{url}"}
        )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yield the lines of a file with their places. Raises UserError for one of neither form."""
    if plain_name(path).endswith(".jsonl"):
        yield from ((f"{path.name}, {where}", record) for where, record in read_jsonl(path))
        return
    with open_table(path, "\t", WANTED) as table:
        if missing := [name for name in ("language", "image_url") if name not in table.names]:
            raise UserError(f"{path} has no column {' and no column '.join(missing)}: {WANTED}.")
        yield from ((f"{path.name}, line {line}", row) for line, row in table.rows)


def _images(url: str, row: dict[str, Any]) -> list[str]:
    """Return the names under which a picture is looked for."""
    name = PurePosixPath(url).name
    numbers = [str(row[field]) for field in ("wit_ix", "image_idx") if row.get(field) is not None]
    return [*dict.fromkeys([name, unquote(name)]), *(number + ending for number in numbers for ending in ENDINGS)]
