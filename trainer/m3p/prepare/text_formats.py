"""Text files that are no plain text, one paragraph a line: tables, markup, JSON of other forms, subtitles, crawls.

Their columns, tags and quotes would become words of passages. A file is refused where most of its lines are of another format.
A few such lines are counted and said.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from m3p.errors import UserError

FEW = 4
"""Lines of a format below which a file is not refused for it."""
HALF_OF_LINES = 0.5
"""Share of the lines of one format above which a file is refused."""
MAX_HEADER = 1000
"""Characters of a line that may name columns."""

_TAG = r"<[/?!]?[A-Za-z][^<>]*>"
_MARKUP = re.compile(rf"{_TAG}(.*{_TAG})?", re.DOTALL)
_HEADER = re.compile(
    r"""(["']?\w+["']?[,;])*["']?(text|sentence|content|paragraph)["']?([,;]["']?\w+["']?)*""", re.IGNORECASE
)
_PYTHON = re.compile(r"\{'.*\}", re.DOTALL)
_ARRAY = re.compile(r"""\[(["'].*["'])?\]""", re.DOTALL)

_TIMES = re.compile(r"(\d+:)?\d\d:\d\d[.,]\d{1,3} +--> +(\d+:)?\d\d:\d\d[.,]\d{1,3}.*")
_ENTITY = re.compile(r"&(amp|lt|gt|quot|apos|nbsp|#\d{1,6}|#[xX][0-9a-fA-F]{1,6});")

TABLE = "have several columns between tabs"
MARKUP = "are markup (XML, HTML)"
OBJECTS = "are dictionaries of Python"
ARRAYS = "are lists of texts"
PARALLEL = "have several columns between |||"
TIMES = "are times of subtitles"
CRAWL = "begin records of a crawl (WARC)"
QUOTED = "stand in quotes as a whole"
ENTITIES = "have letters written as in HTML (&amp;)"
WAYS_OUT = {
    TABLE: "keep the column with the text, for instance with cut -f2",
    MARKUP: "take the text out of the tags",
    OBJECTS: "write them as JSON objects with a field `text`",
    ARRAYS: "write one paragraph a line, for instance with jq -r '.[]'",
    PARALLEL: "keep the column with the text, for instance with sed 's/ *|||.*//'",
    TIMES: "keep the lines that are spoken, for instance with sed -E '/-->/d; /^[0-9]*$/d'",
    CRAWL: "take the text out of the records, without their heads",
}
"""What to do with a file whose lines are mostly of a format. Quotes are no format: a text may consist of them."""
ANY = (TIMES, CRAWL)
"""Formats that refuse a file by a few lines: between them stand others that are no text either."""


class TextFormats:
    """Counts the lines of a text file that look like another format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        """Lines that were added."""
        self.found = Counter[str]()
        """Lines by their format: TABLE, MARKUP, ..."""
        self.header = ""
        """The first line, if it names the columns of a table."""

    def add(self, line: str) -> None:
        """Count a line, which has no spaces around it."""
        if not self.lines and len(line) < MAX_HEADER and ("," in line or ";" in line) and _HEADER.fullmatch(line):
            self.header = line
        self.lines += 1
        if found := _format_of(line):
            self.found[found] += 1

    def check(self) -> None:
        """Raise UserError where most lines are of another format, or the first one names the columns of a table."""
        if self.header:
            raise UserError(
                f"{self.path}, line 1: {self.header!r} names the columns of a table; the rule is plain text, one paragraph a "
                "line: keep the column with the text alone, without its name and quotes."
            )
        for name, way_out in WAYS_OUT.items():
            if self.found[name] >= max(FEW, 0 if name in ANY else HALF_OF_LINES * self.lines):
                raise UserError(
                    f"{self.path}: {self.found[name]:,} of {self.lines:,} lines {name}; the rule is plain text, one paragraph a "
                    f"line, or JSON objects with a field `text`: {way_out}."
                )

    def notes(self) -> Iterator[str]:
        """Yield a line for each format that some lines have, which are passages as they are."""
        for name, number in self.found.items():
            yield f"{self.path}: {number:,} of {self.lines:,} lines {name}; they are taken as text."


def _format_of(line: str) -> str | None:
    """Return which format a line has; None for plain text."""
    if "\t" in line:
        return TABLE
    if "|||" in line:
        return PARALLEL
    if "-->" in line and _TIMES.fullmatch(line):
        return TIMES
    if line[:1] not in '<{["' or not line:
        if line.startswith("WARC/1."):
            return CRAWL
        return ENTITIES if "&" in line and _ENTITY.search(line) else None
    if _MARKUP.fullmatch(line):
        return MARKUP
    if _PYTHON.fullmatch(line):
        return OBJECTS
    if _ARRAY.fullmatch(line):
        return ARRAYS
    return QUOTED if len(line) > 2 and line[0] == line[-1] == '"' and '"' not in line[1:-1].replace('\\"', "") else None
