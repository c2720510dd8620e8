"""Errors that are the user's to mend, as opposed to defects of the program."""

import errno
import threading

from m3p.terminal import one_line

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
OUT_OF_FILES = {errno.EMFILE, errno.ENFILE}


class UserError(Exception):
    """Something that the user can mend: a wrong recipe, a missing file, broken data.

    Its text is the whole message: it names the field or file, the value, the rule and the way out. The entry points
    print it without a traceback and exit with code 2.
    """


class OneRankError(UserError):
    """A user's mistake that only one rank meets, such as a broken shard; that rank says it, whichever it is."""


class BadSample(Exception):
    """One sample that cannot be used; the text is the reason, in one line.

    Its reader adds shard and key, counts it and goes on.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(one_line(reason))


def no_room(error: OSError) -> str | None:
    """Return what to say of a disk that is full; None for another error."""
    if error.errno not in NO_ROOM:
        return None
    # Found while writing, when the system often knows the file's name no more.
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{error.strerror}; free some, or write elsewhere"


def out_of_files(error: OSError) -> str | None:
    """Return what to say where this process, or the machine, has too many files open; None for another error."""
    if error.errno not in OUT_OF_FILES:
        return None
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{error.strerror}: allow more (`ulimit -n 65536`)"


def say_thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Print a thread's traceback (a `threading.excepthook`), but for a full disk.

    TensorBoard's thread hands that on to the main thread, where it is said in one line.
    """
    if not (isinstance(failure.exc_value, OSError) and no_room(failure.exc_value)):
        threading.__excepthook__(failure)
