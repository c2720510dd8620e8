"""What is shown to people: lines in which text from outside is only text. Tables: m3p/console.py.

Names of files, ids, languages and messages of other programs may hold line breaks and terminal escapes. Everything that the
program prints goes through these functions.
"""

import re
import sys
import unicodedata
from typing import TextIO

from m3p.masking import masked

_KEPT_FORMATS = {"\u200c", "\u200d"}
"""Joiners that scripts such as Persian and Devanagari need; other format characters can turn a line's direction around."""


_AT_THE_EDGE = re.compile(r"\n(?=\S)")


def one_line(text: object) -> str:
    """Return text in one line: line breaks, control characters and what turns directions around are escaped as in Python."""
    return "".join(char if _harmless(char) else char.encode("unicode_escape").decode() for char in str(text))


def printable(text: object) -> str:
    """Return text as `one_line` does, but with its line breaks and tabs kept: a message of several lines."""
    return "\n".join("\t".join(map(one_line, line.split("\t"))) for line in str(text).split("\n"))


def message(text: object) -> str:
    """Return a message as it is printed: no escapes, and no passwords of URLs.

    Lines after its first are set in: a line break in a name begins no line of its own.
    """
    return _AT_THE_EDGE.sub("\n  ", printable(masked(str(text))))


def _harmless(char: str) -> bool:
    if char.isascii():
        return char.isprintable()
    return char in _KEPT_FORMATS or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def say(text: object) -> None:
    """Print a message to standard output."""
    _write(sys.stdout, text)


def warn(text: object) -> None:
    """Print a message to standard error."""
    _write(sys.stderr, text)


def _write(stream: TextIO, text: object) -> None:
    print(message(text), file=stream, flush=True)
