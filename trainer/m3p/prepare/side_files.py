"""Files of captions that are published without their pictures, such as translations of CC3M, looked up by a value of the picture.

FILE.jsonl   an object a line: the value (a URL, a key, ...) and captions in any layout of records.py, or {"caption": {"de": ...}}
FILE.tsv     columns under a line of names: the value, and `caption`, `title` or `caption_de`; with commas in FILE.csv

All are read once, into a table on disk: 3 million captions in six languages would not fit in the memory of every machine.
"""

import errno
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from m3p.data.languages import LANGUAGE_TAG, is_language
from m3p.data.records import find_captions
from m3p.errors import BadSample, UserError
from m3p.prepare.captions import read_jsonl
from m3p.prepare.lines import plain_name
from m3p.prepare.pairs import Entry, Fields, caption_mistakes, unicode_mistakes
from m3p.prepare.tables import open_table

WANTED = "give a file of JSON lines (.jsonl), or a table (.tsv, .csv) under a line of names"
SEPARATORS = {".tsv": "\t", ".csv": ","}
CAPTION_COLUMNS = ("caption", "title")
"""Columns of a table that hold a caption whose language the column does not name."""


class SideFile(NamedTuple):
    """A file of captions, as the command names it: [LANG=]FILE."""

    path: Path
    language: str | None
    """Of its captions that name none."""

    @classmethod
    def of(cls, text: str) -> Self:
        """Read "de=FILE" or "FILE"."""
        language, sign, path = text.partition("=")
        if sign and is_language(language):
            return cls(Path(path), language)
        return cls(Path(text), None)


class CaptionTable:
    """Context manager: captions by the value that a picture is found by, in a file that is deleted at the end.

    Args:
        path: of the table, which must not exist.
        by: name of the field or column that holds the value.
    """

    def __init__(self, path: Path, by: str) -> None:
        self.by, self._path = by, path
        self._table = sqlite3.connect(path, isolation_level=None)
        self._table.execute("PRAGMA synchronous = OFF")  # it is deleted at the end, and of no use after a crash
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute(
            "CREATE TABLE captions (value TEXT, language TEXT, texts TEXT, place TEXT, used INTEGER DEFAULT 0, "
            "PRIMARY KEY (value, language)) WITHOUT ROWID"
        )
        self._table.execute("BEGIN")  # one transaction, which is never committed: nobody else reads the file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._table.close()
        self._path.unlink()

    def add(self, files: Iterable[SideFile]) -> dict[str, list[str]]:
        """Take the captions of all files in; return what is wrong with records that are left out, by where they stand."""
        bad: dict[str, list[str]] = {}
        for file in files:
            for where, record in _entries(file):
                if mistakes := [record] if isinstance(record, str) else self._take(where, record, file.language):
                    bad[where] = mistakes
        return bad

    def captions(self, value: str) -> dict[str, list[str]]:
        """Return the captions of a picture by language, and note that they are used; empty where there are none."""
        rows = self._table.execute("SELECT language, texts FROM captions WHERE value = ?", (value,)).fetchall()
        if rows:
            self._execute("UPDATE captions SET used = 1 WHERE value = ?", (value,))
        return {language: json.loads(texts) for language, texts in rows}

    def _execute(self, command: str, values: tuple[str, ...]) -> sqlite3.Cursor:
        """Change the table. Raises OSError where the disk is full."""
        try:
            return self._table.execute(command, values)
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path)) from None

    def counts(self) -> tuple[int, int]:
        """Return how many different values there are, and how many of them no picture has asked for."""
        every = "SELECT COUNT(DISTINCT value) FROM captions"
        found, unused = (self._table.execute(every + rest).fetchone()[0] for rest in ("", " WHERE used = 0"))
        return int(found), int(unused)

    def example(self) -> str:
        """Return one of the values; "" where there are none."""
        row = self._table.execute("SELECT value FROM captions LIMIT 1").fetchone()
        return row[0] if row else ""

    def _take(self, where: str, record: Fields, language: str | None) -> list[str]:
        """Take a record in; return what is wrong with it."""
        value = record.get(self.by)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            names = ", ".join(map(repr, list(record)[:8]))
            return [
                f"{self.by} is {value!r}; the rule is a text or number by which a picture is found (--by); it has {names}"
            ]
        try:
            captions = _captions(record, language)
        except BadSample as reason:
            return [f"{reason}: name the language as LANG=FILE"]
        if mistakes := caption_mistakes(captions) + unicode_mistakes({"captions": captions, "id": value}):
            return mistakes
        return [
            mistake
            for code, texts in captions.items()
            if (mistake := self._insert(str(value).strip(), code, texts, where))
        ]

    def _insert(self, value: str, language: str, texts: object, where: str) -> str:
        """Write one row; return what is wrong with it."""
        listed = json.dumps(texts if isinstance(texts, list) else [texts], ensure_ascii=False)
        row = (value, language, listed, where)
        if self._execute("INSERT OR IGNORE INTO captions VALUES (?, ?, ?, ?, 0)", row).rowcount:
            return ""
        key = "SELECT place FROM captions WHERE value = ? AND language = ?"
        (first,) = self._table.execute(key, (value, language)).fetchone()
        return f"{self.by} {value!r} has a caption in {language} in {first} already; the rule is one line a picture"


def _entries(file: SideFile) -> Iterator[Entry]:
    """Yield the records of a file. Raises UserError for one that cannot be read."""
    if file.language is not None and not LANGUAGE_TAG.fullmatch(file.language):
        raise UserError(
            f"{file.language}={file.path}: {file.language} is no language tag; write it like de or zh-Hant."
        )
    ending = Path(plain_name(file.path)).suffix
    if ending in (".jsonl", ".json"):
        if not file.path.is_file():
            raise UserError(f"{file.path} {'is a folder' if file.path.is_dir() else 'does not exist'}: {WANTED}.")
        yield from (Entry(f"{file.path.name}, {where}", record) for where, record in read_jsonl(file.path))
    elif ending in SEPARATORS:
        with open_table(file.path, SEPARATORS[ending], WANTED) as table:
            for line, row in table.rows:
                present = row if isinstance(row, str) else {name: value for name, value in row.items() if value}
                yield Entry(f"{file.path.name}, line {line}", present)
    else:
        raise UserError(f"{file.path}: {WANTED}.")


def _captions(record: Fields, language: str | None) -> dict[str, object]:
    """Return the captions of a record by language. Raises BadSample where no layout fits."""
    if isinstance(record.get("caption"), dict):  # as CCLM has its translations
        return dict(record["caption"])
    named = next((record[name] for name in CAPTION_COLUMNS if record.get(name)), None)
    fields = {**record, "caption": named} if named is not None else record
    return dict(find_captions(fields, {}, language)[0])
