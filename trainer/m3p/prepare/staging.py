"""Write a folder aside and rename it when it is whole, so that a killed command leaves no half of one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m3p.errors import UserError


@contextmanager
def staged_folder(output: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside `output` that becomes `output` when the block ends well.

    A folder that holds anything is refused, unless `overwrite` is set and it holds a file that matches the glob
    `marker`: what the same command wrote before. Raises UserError.
    """
    check_output(output, marker, overwrite)
    # A link stays a link, and "." gets a name.
    output = output.resolve()
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if output.is_dir():
        old = output.with_name(f".{output.name}.old")
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
