"""Files of a run, an export or an index that are read again: within bounds, and with one kind of error where they are damaged.

They may come from another machine, or from a stranger.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from m3p.errors import UserError

LARGEST_JSON = 64 * 2**20
"""Bytes of a JSON file: the largest, a result with the ranks of all its queries, has some MB."""


_POINTERS = {b"version https://git-lfs.github.com/spec/": "git lfs pull", b"/annex/objects/": "git annex get"}
"""How a file begins that stands in the place of another one in a clone of a repository, and what fetches that."""


def check_no_pointer(path: Path) -> None:
    """Raise UserError where a regular file is a pointer of Git LFS or git-annex: its lines would be taken for content."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(max(map(len, _POINTERS)))
    for words, command in _POINTERS.items():
        if start.startswith(words):
            raise UserError(
                f"{path}: is a pointer in the place of the file, as in a clone without its large files: fetch it with "
                f"`{command}`, or download it"
            )


def read_bounded(path: Path, limit: int = LARGEST_JSON) -> bytes:
    """Return the bytes of a regular file. Raises OSError, and ValueError for a pipe, a device and what is too large."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises OSError, and ValueError for anything else."""
    try:
        found = json.loads(read_bounded(path))
    except RecursionError:
        raise ValueError("its values lie too deep in each other") from None
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def load_npy(path: Path) -> NDArray[Any]:
    """Return the array of an .npy file, read into memory: a map of one that is cut short would end the process.

    Raises OSError, and ValueError for what is none.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        raise
    except Exception as error:  # on broken bytes numpy's parser raises nearly anything, from MemoryError to TokenError
        raise ValueError(f"it is no array ({error})") from None
    if not isinstance(found, np.ndarray):  # an npz under this name
        found.close()
        raise ValueError("it is no array, but an archive of several")
    return found


def open_tensors(path: Path) -> Any:
    """Open a safetensors file, as the library's `safe_open` does. Raises SafetensorError for any other file, and OSError.

    The library calls whatever it cannot open missing. It then has torch open the file once more, which tells of the system's
    errors (the file has gone meanwhile, too many are open) by RuntimeErrors that end with the number in brackets.
    """
    path.open("rb").close()
    try:
        return safe_open(path, framework="pt")
    except RuntimeError as error:
        number = re.search(r"\((\d+)\)$", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
