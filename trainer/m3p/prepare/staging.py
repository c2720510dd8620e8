"""Write a folder aside and rename it when it is whole, so that a killed command leaves no half of one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m3p.errors import UserError
from m3p.locks import hold

PATIENCE = 1.0
"""Seconds for which another command may hold the output: one that was killed lets go of it, but not at once."""


@contextmanager
def staged_folder(output: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside `output` that becomes `output` when the block ends well.

    A folder that holds anything is refused, unless `overwrite` is set and it holds a file that matches the glob
    `marker`: what the same command wrote before. So is one that another command is writing. Raises UserError.
    """
    check_output(output, marker, overwrite)
    given = output
    # A link stays a link, and "." gets a name.
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    lock, old = (output.with_name(f".{output.name}.{ending}") for ending in ("lock", "old"))
    with hold(lock, PATIENCE) as mine:
        if not mine:
            raise UserError(
                f"--output {given}: another command is writing it: wait until it is done, or choose another folder."
            )
        try:
            if old.is_dir() and not output.exists():
                os.rename(old, output)  # the last command was killed between its two renames
            check_output(given, marker, overwrite)  # again: another command may have ended meanwhile
            yield from _write_aside(output, old)
        finally:
            lock.unlink(missing_ok=True)


def _write_aside(output: Path, old: Path) -> Iterator[Path]:
    """Yield an empty folder; put it in the place of `output`, which becomes `old` and is deleted."""
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if output.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(output, old)
        os.rename(partial, output)
        shutil.rmtree(old)
    else:
        os.rename(partial, output)


def check_output(output: Path, marker: str, overwrite: bool) -> None:
    """Raise UserError if `output` must not be replaced; see `staged_folder`."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder that is new or empty.")
    above = next(parent for parent in output.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"--output {output}: {above} is a file; give a folder that is new or empty.")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--output {output} is not empty: choose another folder, or replace it with --overwrite.")
    if not any(output.glob(marker)):
        raise UserError(
            f"--output {output} holds no {marker}, so this command did not write it; --overwrite would delete "
            "something else. Choose another folder."
        )
