"""Long work in numbered blocks: shared among the ranks of the job, each kept as a file, so that a kill costs one block.

What a block holds does not depend on which rank computes it, so any number of ranks gives the same numbers. A file ends with a
checksum: one that a crash of the machine, or a full disk, has left damaged is computed again.
"""

import hashlib
import io
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3p import distributed
from m3p.atomic import replacing
from m3p.terminal import say, warn

Floats = NDArray[np.float32]
DIGEST = 16
"""Bytes of a file's checksum, behind the array."""
SECONDS_BETWEEN_LINES = 30.0
"""Progress is a line on standard output, at most so often: a log file shows it as a terminal does."""


@dataclass
class Blocks:
    """Where the blocks of one scoring are kept, and which rank this is.

    The folder's name says what is computed (weights, data, settings): blocks found in it were left by a call that was killed,
    and are not computed again. All ranks must see the folder.
    """

    folder: Path
    rank: int = 0
    ranks: int = 1

    def compute(
        self, name: str, sizes: Sequence[int], work: Callable[[int], Floats], unit: str
    ) -> list[NDArray[np.float32]]:
        """Return block 0, 1, ... as arrays that are mapped from their files, once all ranks have computed theirs.

        Args:
            name: of this kind of block, a part of the files' names.
            sizes: how many units of work each block is, for the progress.
            work: computes a block by its number.
            unit: what is counted, in the plural.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        files = [self._file(name, number) for number in range(len(sizes))]
        # Every rank must share out the same list, while files of this very call appear.
        left = distributed.broadcast_object(self._left(name, len(sizes)))
        mine = left[self.rank :: self.ranks]
        progress = _Progress(name, unit, sum(sizes[number] for number in mine), quiet=self.rank > 0)
        for number in mine:
            write_block(files[number], work(number))
            progress.add(sizes[number])
        distributed.gather_objects(None)  # wait for the others
        return [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]

    def done(self, sizes: Sequence[int], name: str) -> int:
        """Return how many units of work are in files already."""
        return sum(sizes) - sum(sizes[number] for number in self._left(name, len(sizes)))

    def _file(self, name: str, number: int) -> Path:
        return self.folder / f"{name}-{number:06d}.npy"

    def _left(self, name: str, count: int) -> list[int]:
        """Return the numbers of the blocks that are to be computed, as rank 0 finds them; it says which files are damaged."""
        if self.rank > 0:
            return []
        left = []
        for number in range(count):
            file = self._file(name, number)
            if file.is_file() and not _is_whole(file):
                warn(f"{file} is damaged: it is computed again")
                file.unlink()
            if not file.is_file():
                left.append(number)
        return left

    def remove(self) -> None:
        """Delete the blocks of this scoring, once its result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_block(path: Path, array: Floats) -> None:
    """Write an array as an .npy file with its checksum behind it, which numpy does not read."""
    content = io.BytesIO()
    np.save(content, array)
    with replacing(path, durable=False) as aside:
        aside.write_bytes(content.getvalue() + _digest(content.getvalue()))


def _is_whole(path: Path) -> bool:
    content = path.read_bytes()
    return content[-DIGEST:] == _digest(content[:-DIGEST])


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


class _Progress:
    """Prints how far this rank is; the others are as far, since blocks are dealt out in turn."""

    def __init__(self, name: str, unit: str, total: int, quiet: bool) -> None:
        self.name, self.unit, self.total, self.quiet = name, unit, total, quiet
        self._done, self._start = 0, time.monotonic()
        self._said = self._start

    def add(self, number: int) -> None:
        """Count `number` units of work as done."""
        self._done += number
        now = time.monotonic()
        if self.quiet or now - self._said < SECONDS_BETWEEN_LINES:
            return
        self._said = now
        speed = self._done / (now - self._start)
        left = duration((self.total - self._done) / speed)
        say(f"{self.name}: {self._done:,} of {self.total:,} {self.unit}, {speed:,.0f} a second, {left} left")


def duration(seconds: float) -> str:
    """Return a length of time in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def cut(counts: NDArray[np.int64], limit: int) -> list[tuple[int, int]]:
    """Cut items with `counts` [N] units of work each into runs (first, end) of at most `limit` units, or of one item."""
    bounds, first, total = list[tuple[int, int]](), 0, 0
    for place, count in enumerate(counts.tolist()):
        if place > first and total + count > limit:
            bounds.append((first, place))
            first, total = place, 0
        total += count
    return [*bounds, (first, len(counts))]
