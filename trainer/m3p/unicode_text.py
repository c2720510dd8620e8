"""Text that UTF-8 can write, and text that it cannot: halves of characters (surrogates, U+D800 to U+DFFF).

JSON and YAML can spell half a character ("\\ud800"), and Python makes one of each byte of a name that is not UTF-8. Where such a
text came in, it is refused by name: later on no file could be written.
"""

import os
from collections.abc import Iterable
from contextlib import suppress

from m3p.errors import UserError

HALF = "half a character (\\ud800 to \\udfff)"
"""What messages call it."""


def is_unicode(text: str) -> bool:
    """Tell whether UTF-8 can write a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_words(words: Iterable[str]) -> None:
    """Raise UserError for a word of the command line, or a working folder, that is not UTF-8."""
    for word in words:
        if not is_unicode(word):
            raise UserError(
                f"{word!r} on the command line is not UTF-8: write it in UTF-8; rename a file or folder of such a name"
            )
    with suppress(FileNotFoundError):  # it was deleted: whatever is looked for in it is missing, and is said to be
        if not is_unicode(folder := os.getcwd()):
            raise UserError(
                f"the working folder {folder!r} has a name that is not UTF-8: rename it, or work in another"
            )
