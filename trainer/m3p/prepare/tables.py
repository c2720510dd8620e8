"""Tables of text, a record a line under a line of names: CSV and TSV files, compressed or not.

Python's reader takes nearly anything: it drops fields beyond the last name, and a quotation mark that is never closed swallows
the lines that follow. Here both are mistakes, since either would make other captions without a word.
"""

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from m3p.errors import UserError
from m3p.prepare.lines import open_text

SHOWN = 60
"""Characters of a field that a message shows."""


class Table(NamedTuple):
    """An opened table."""

    names: list[str]
    """Of its columns; empty where the file is."""
    rows: Iterator[tuple[int, dict[str, str] | str]]
    """The line where each record begins, and its fields by name, or what is wrong with it. Fields at the end of a short line
    are left out. Blank lines are passed over."""


@contextmanager
def open_table(path: Path, separator: str, wanted: str) -> Iterator[Table]:
    """Open a table of UTF-8 text for reading.

    Raises UserError for a file that `open_text` refuses, for a name that two columns have, and, while rows are read, for a
    quotation mark without a second one.
    """
    with open_text(path, wanted) as file:
        rows = _rows(path, file, separator)
        names = next(rows, (0, list[str]()))[1]
        if twice := next((name for name, number in Counter(names).items() if name and number > 1), ""):
            raise UserError(f"{path}: the name {twice!r} stands over several columns: rename all but one.")
        yield Table(names, ((line, _record(names, row)) for line, row in rows))


def _record(names: list[str], row: list[str]) -> dict[str, str] | str:
    if len(row) > len(names):
        return (
            f"{len(row)} fields, the last of them {row[-1][:SHOWN]!r}; the rule is {len(names)}, as in the line of names: a text "
            "that holds what separates fields stands in quotation marks"
        )
    return dict(zip(names, row, strict=False))


def _rows(path: Path, file: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the fields of each record. Raises UserError where quotation marks do not pair up."""
    reader: Any = csv.reader(file, delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(_unpaired(path, line, str(error))) from None
        if row is None:
            return
        if separator == "\t" and any("\t" in field for field in row):
            raise UserError(_unpaired(path, line, f"a field would hold other columns, up to line {reader.line_num}"))
        if row:
            yield line, row


def _unpaired(path: Path, line: int, reason: str) -> str:
    return (
        f"{path}, line {line}: its quotation marks do not pair up ({reason}); the rule is that of CSV: a field that begins with "
        "one ends with one, and those inside it are doubled. Mend the line, or take the quotation marks away."
    )
