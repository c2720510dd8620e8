"""Tables with a column of pictures: Parquet files, and folders of Hugging Face `datasets` (Parquet, or `save_to_disk`'s Arrow).

A picture is {"bytes", "path"}, as `datasets` stores them, plain bytes, or a path in the folder of the pictures. A column `split`
(Flickr30K on the hub has all splits in one) says which rows are meant, a column `language` in which one captions are.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from m3p.data.records import OWN_FIELDS, find_captions
from m3p.data.shards.manifest import NOT_STATED
from m3p.errors import BadSample, UserError
from m3p.prepare.pairs import Entry
from m3p.prepare.published import Published, origin_of
from m3p.prepare.sets.parquet_files import split_files
from m3p.terminal import say

ROWS = 64
"""Rows that are in memory at once."""
IDS = ("id", "image_id", "img_id", "key")
"""Columns that are taken for the id, the first that is there; without one it is the number of the row."""


def parquet(
    source: Annotated[Path, typer.Argument(help="A .parquet file, or a folder of a dataset.")],
    split: Annotated[str, typer.Option(help="Of a folder that has several.")] = "",
    image_column: Annotated[str, typer.Option(help="Column of the pictures.")] = "image",
    captions: Annotated[
        list[str] | None, typer.Option("--caption", help="LANG=COLUMN; may be given again. Else found by their names.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Of captions whose column names none.")] = None,
    caption_source: Annotated[str, typer.Option(help="Who wrote them, as the manifest is to say it.")] = NOT_STATED,
) -> Published:
    """Parquet files, or a folder of Hugging Face `datasets`, to shards; needs pyarrow (the extra `parquet`)."""
    files = split_files(source, split)
    columns = [_pair(text) for text in captions or []]
    _check_columns(files[0], [image_column, *(column for _, column in columns)])
    entries = _entries(_of_split(source, _rows(files), split), image_column, columns, language)
    return Published(str(source), entries, origin_of(source.stem, caption_source, split), language, has_pictures=True)


def _pair(text: str) -> tuple[str, str]:
    language, sign, column = text.partition("=")
    if not (language and sign and column):
        raise UserError(f"--caption {text}: write LANG=COLUMN, such as de=caption_german.")
    return language, column


def _tables(path: Path) -> Any:
    """Return pyarrow's reader of a file: something with `schema`, and batches. Raises UserError."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading Parquet and Arrow files needs pyarrow: pip install 'm3p-trainer[parquet]'.") from None
    try:
        if path.suffix == ".arrow":
            return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
        return pyarrow.parquet.ParquetFile(path)
    except (
        Exception
    ) as error:  # of broken bytes pyarrow raises nearly anything, from ArrowException to UnicodeDecodeError
        raise UserError(f"{path} cannot be read as {path.suffix[1:]} ({error}): copy it again.") from None


def _check_columns(path: Path, wanted: list[str]) -> None:
    """Raise UserError where a file lacks a column."""
    table = _tables(path)
    schema = table.schema if path.suffix == ".arrow" else table.schema_arrow
    try:
        names = schema.names
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is broken: a name of a column is no UTF-8 ({error.reason}): copy it again.") from None
    if missing := [name for name in wanted if name not in names]:
        raise UserError(
            f"{path} has no column {' and no column '.join(missing)}; it has {', '.join(names[:20])}: name them with "
            "--image-column and --caption LANG=COLUMN."
        )


def _rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of all files, a few of them in memory at once. Raises UserError for a broken file."""
    for path in files:
        table = _tables(path)

        try:
            for batch in table if path.suffix == ".arrow" else table.iter_batches(batch_size=ROWS):
                batch.validate(full=True)  # what is wrong inside would be read from any place of the memory
                for first in range(0, batch.num_rows, ROWS):
                    yield from batch.slice(first, ROWS).to_pylist()
        except Exception as error:  # of broken bytes pyarrow raises nearly anything, from ArrowException to SystemError
            raise UserError(f"{path} is broken ({error}): copy it again.") from None


def _of_split(source: Path, rows: Iterator[dict[str, Any]], split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the numbered rows of a split, where a column `split` names that of each; else all. Says how many it leaves out.

    Raises UserError for rows of several splits where none was asked for, where no row is of the one that was, and for a split
    that is no name.
    """
    others, first = Counter[str](), ""
    found = False
    for number, row in enumerate(rows):
        own = row.get("split")
        if own is not None and not isinstance(own, str):
            raise UserError(
                f"{source}, row {number}: its column split holds {own!r}; want the name of a split, such as train: write names "
                "in the place of numbers, or take the column out."
            )
        if own:
            first = first or own
            if split and own.casefold() != split.casefold():
                others[own] += 1
                continue
            if not split and own != first:
                raise UserError(f"{source}: its column split says {first} and {own}: say which with --split.")
        found = True
        yield number, row
    listed = ", ".join(f"{name} {count:,}" for name, count in others.most_common(8))
    if others and not found:
        raise UserError(f"{source}: no row is of split {split} by its column split, which has {listed}.")
    if others:
        say(f"{source}: rows of other splits, by its column split, were left out: {listed}.")


def _entries(
    rows: Iterator[tuple[int, dict[str, Any]]], image_column: str, columns: list[tuple[str, str]], language: str | None
) -> Iterator[Entry]:
    """Yield a record a row."""
    for number, row in rows:
        where = f"row {number}"
        image = row.pop(image_column)
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        identity = next((row[name] for name in IDS if row.get(name) is not None), number)
        record = {name: row[name] for name in OWN_FIELDS if row.get(name) is not None}
        try:
            captions = _named(row, columns) if columns else dict(find_captions(_present(row), {}, language)[0])
        except BadSample as reason:
            yield Entry(
                where, f"{reason}: name the columns with --caption LANG=COLUMN, or the language with --language"
            )
            continue
        yield Entry(where, {**record, "id": identity, "image": image, "captions": captions})


def _named(row: dict[str, Any], columns: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the captions of the columns that were named; several of one language are put together."""
    captions: dict[str, Any] = {}
    for code, column in columns:
        value = row[column]
        captions.setdefault(code, []).extend(value if isinstance(value, list) else [value])
    return captions


def _present(row: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a row that are there. `text`, as many name it, is a caption."""
    found = {name: value for name, value in row.items() if value is not None}
    return {"caption": found["text"], **found} if "text" in found else found
