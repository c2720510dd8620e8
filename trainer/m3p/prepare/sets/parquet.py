"""Tables with a column of pictures: Parquet files, and folders of Hugging Face `datasets` (Parquet, or `save_to_disk`'s Arrow).

data/train-00000-of-00002.parquet           as the hub has them; the split is the name's first part
dataset_dict.json, train/data-00000-of-00001.arrow   DatasetDict.save_to_disk
state.json, data-00000-of-00001.arrow       Dataset.save_to_disk

A picture is {"bytes", "path"}, as `datasets` stores them, plain bytes, or a path in the folder of the pictures.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from m3p.data.records import OWN_FIELDS, find_captions
from m3p.data.shards.manifest import NOT_STATED
from m3p.errors import BadSample, UserError
from m3p.prepare.pairs import Entry
from m3p.prepare.published import Published, origin_of

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
    files = _files(source, split)
    columns = dict(_pair(text) for text in captions or [])
    _check_columns(files[0], [image_column, *columns.values()])
    entries = _entries(files, image_column, columns, language)
    return Published(str(source), entries, origin_of(source.stem, caption_source, split), language, has_pictures=True)


def _pair(text: str) -> tuple[str, str]:
    language, sign, column = text.partition("=")
    if not (language and sign and column):
        raise UserError(f"--caption {text}: write LANG=COLUMN, such as de=caption_german.")
    return language, column


def _files(source: Path, split: str) -> list[Path]:
    """Return the files of a split. Raises UserError where there are none, or of several splits."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source} does not exist: give a .parquet file, or the folder of a dataset.")
    found = sorted([*source.rglob("*.parquet"), *source.rglob("*.arrow")])
    splits: dict[str, list[Path]] = {}
    for path in found:
        # save_to_disk names its files data-*.arrow, in a folder a split; the hub train-*.parquet.
        name = path.name.partition("-")[0].partition(".")[0]
        splits.setdefault(path.parent.name if path.suffix == ".arrow" and path.parent != source else name, []).append(
            path
        )
    if split and split in splits:
        return splits[split]
    if len(splits) == 1 and not split:
        return next(iter(splits.values()))
    listed = ", ".join(splits) or "no .parquet or .arrow file"
    raise UserError(f"{source} holds {listed}: {f'it has no split {split}' if split else 'say which with --split'}.")


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


def _entries(files: list[Path], image_column: str, columns: dict[str, str], language: str | None) -> Iterator[Entry]:
    """Yield a record a row."""
    for number, row in enumerate(_rows(files)):
        where = f"row {number}"
        image = row.pop(image_column)
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        identity = next((row[name] for name in IDS if row.get(name) is not None), number)
        record = {name: row[name] for name in OWN_FIELDS if row.get(name) is not None}
        try:
            captions = {code: row[column] for code, column in columns.items()} or find_captions(
                _present(row), {}, language
            )[0]
        except BadSample as reason:
            yield Entry(
                where, f"{reason}: name the columns with --caption LANG=COLUMN, or the language with --language"
            )
            continue
        yield Entry(where, {**record, "id": identity, "image": image, "captions": dict(captions)})


def _present(row: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a row that are there. `text`, as many name it, is a caption."""
    found = {name: value for name, value in row.items() if value is not None}
    return {"caption": found["text"], **found} if "text" in found else found
