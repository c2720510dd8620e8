"""Captions beside a tar instead of in it: NAME.captions has one line for each sample of NAME.tar, in the tar's order.

A line is what KEY.json would hold, {"id", "captions": {language: [texts]}, "published_id"?}, and takes the place of all JSON and
text files of the sample. An empty line: the sample has no caption. So the pictures of one tar serve several sets of captions,
such as translations that are published without the pictures, and no tar is written again.
"""

import hashlib
import os
from pathlib import Path
from typing import Self

import numpy as np

from m3p.data.records import Members, text_files
from m3p.errors import BadSample

SUFFIX = ".captions"
DIGEST = 16
"""Bytes of a file's hash, as a manifest notes it."""
LARGEST_FILE = 2**30
"""Bytes of a file that is read: a million samples with six captions each have 0.6 GB."""


class SideCaptions:
    """The captions beside one tar. The file stays open, and a line is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Open `path`. Raises ValueError, which says what is wrong with it; OSError."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = self._read_all(path)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.digest = digest(content)
        ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
        self._starts = np.concatenate([[0], ends + 1])

    @classmethod
    def beside(cls, tar: Path) -> Self | None:
        """Return the captions beside a tar; None where there are none. Raises as the class does."""
        path = side_path(tar)
        return cls(path) if path.exists() else None

    def __len__(self) -> int:
        """Samples that it has a line for."""
        return len(self._starts) - 1

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def line(self, sample: int) -> bytes:
        """Return the JSON of a sample; empty where it has no caption. Raises BadSample where the file was cut short meanwhile."""
        first, end = self._starts[sample : sample + 2].tolist()
        found = os.pread(self._descriptor, end - first, first)
        if not found.endswith(b"\n"):
            raise BadSample("the file of captions beside the shard has changed since the run began")
        return found[:-1]

    def over(self, sample: int, members: Members) -> Members:
        """Return the files of a sample, with its line in the place of its JSON and text files. Raises BadSample."""
        texts = {"json", *text_files(members)}
        kept = {extension: content for extension, content in members.items() if extension not in texts}
        line = self.line(sample)
        return {**kept, "json": line} if line else kept

    def _read_all(self, path: Path) -> bytes:
        with open(self._descriptor, "rb", closefd=False) as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ValueError(f"{path.name} has more than {LARGEST_FILE:,} bytes")
        if content and not content.endswith(b"\n"):
            raise ValueError(f"{path.name} does not end with a whole line")
        return content


def side_path(tar: Path) -> Path:
    """Return where the captions beside a tar are, if there are any."""
    return tar.with_suffix(SUFFIX)


def digest(content: bytes) -> str:
    """Return the hash of a file of captions, as a manifest notes it."""
    return hashlib.blake2b(content, digest_size=DIGEST).hexdigest()
