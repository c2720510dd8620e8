"""Which pictures a run has trained on, and the runs that it started from: numbers (data/identity.py) in a file of the run folder.

An export has a copy, so that whoever evaluates or fine-tunes what it holds can tell whether a picture was seen.
"""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3p.atomic import replacing
from m3p.errors import UserError
from m3p.stored_files import load_npy

SEEN = "pictures_seen.npy"
"""uint64 [N], sorted, each once."""
MAX_KEPT = 100_000_000
"""Numbers that the file holds at most: 800 MB."""


def read_seen(path: Path) -> NDArray[np.uint64] | None:
    """Return the numbers of the pictures that the weights in `path` were trained on; None where that is not recorded.

    `path` is a run folder, one of its checkpoints, or an export. Raises UserError for a file that is damaged.
    """
    resolved = path.resolve()
    folders = [resolved, *(resolved.parents[1:2] if resolved.parent.name == "checkpoints" else [])]
    file = next((folder / SEEN for folder in folders if (folder / SEEN).is_file()), None)
    if file is None:
        return None
    try:
        found = load_npy(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): copy it again, or remove it: then nothing is known"
        ) from None
    if found.dtype != np.uint64 or found.ndim != 1:
        raise UserError(
            f"{file} holds {found.dtype} {found.shape}, not numbers of pictures: copy it again, or remove it"
        )
    numbers: NDArray[np.uint64] = found
    return numbers


def write_seen(folder: Path, numbers: NDArray[np.uint64]) -> None:
    """Make the record of a run folder hold `numbers`, sorted and each once."""
    with replacing(folder / SEEN, durable=False) as aside, aside.open("wb") as file:
        np.save(file, numbers, allow_pickle=False)


def copy_seen(run: Path, output: Path) -> None:
    """Copy the record of a run into the folder of its export; where there is none, none is made."""
    if (run / SEEN).is_file():
        shutil.copyfile(run / SEEN, output / SEEN)
