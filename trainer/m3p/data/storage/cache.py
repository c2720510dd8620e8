"""A cache of remote files on the node's own disk, bounded in bytes and shared by all processes of the node.

Locks are those of `m3p.locks`: a killed process leaves none behind. A file is downloaded aside and renamed when it is
whole, so that a kill leaves nothing that looks like one. What was used longest ago makes room; whoever has it open reads
on, since an open file outlives its name.
"""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from m3p.atomic import publish
from m3p.data.storage.remote import ATTEMPTS, TooLongError, download, pause, reason
from m3p.errors import NO_ROOM, OneRankError
from m3p.locks import hold
from m3p.paths import masked

FOLDER = "m3p-cache"
"""In the folder that the user gives, which may hold anything else: only what lies in here is counted and deleted."""


@dataclass(frozen=True)
class Wanted:
    """What a file has to be when it arrives."""

    limit: int
    """Bytes that are read of it, at most."""
    size: int | None = None
    """Bytes that it has, if known."""
    fault: Callable[[Path], str | None] = lambda _: None
    """Says what is wrong with a file; such a one is not kept."""


class Cache:
    """Files of any fsspec URL as local paths.

    Args:
        folder: on a disk of this node. The cache is its subfolder `FOLDER`.
        limit: bytes that it may hold; files that are open count no more once they had to make room.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._given, self.folder, self.limit = folder, folder / FOLDER, limit

    def make(self) -> None:
        """Make the folder if it is not there. Raises OneRankError unless files can be kept there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with hold(self._room, 0):  # another user's cannot be opened
                pass
        except OSError as error:
            raise OneRankError(
                f"data.cache_folder = {self._given}: no cache can be kept there ({error}); give a folder on a disk of the "
                "node that you may write to"
            ) from error

    @property
    def _room(self) -> Path:
        """The lock of whoever makes room."""
        return self.folder / ".room.lock"

    def get(self, url: str, name: str, wanted: Wanted, wait: bool = True) -> Path | None:
        """Return `url` as the file `name` (a path inside the cache), downloaded if it is not there.

        What arrives must be as `wanted`. Without `wait`: None if another process is fetching it. Raises OneRankError where
        the file cannot be had, or is another.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if _is_there(path, wanted.size):
            return path
        with hold(path.with_name(f".{path.name}.lock"), math.inf if wait else 0) as mine:
            if not mine:
                return None
            if not _is_there(path, wanted.size):
                self._fetch(url, path, wanted)
        return path

    def forget(self, name: str) -> None:
        """Delete a file that has shown to be damaged, if it is there; whoever has it open reads on."""
        (self.folder / name).unlink(missing_ok=True)

    def _fetch(self, url: str, path: Path, wanted: Wanted) -> None:
        """Download with retries; a full disk is met by making more room than the bound asks for."""
        partial = path.with_name(f".{path.name}.partial")
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            try:
                self._make_room(wanted.size or 0, self.limit // 2**attempt)
                found = download(url, partial, wanted.limit)
                if wanted.size is not None and found != wanted.size:
                    raise _WrongFileError(f"it has {found:,} bytes, the manifest says {wanted.size:,}")
                if fault := wanted.fault(partial):
                    raise _WrongFileError(fault)
                publish(partial, path)
                return
            # Every store has exceptions of its own (aiohttp's, botocore's), with no common class but this one.
            except Exception as error:
                partial.unlink(missing_ok=True)
                if isinstance(error, FileNotFoundError) and not self._is_inside(error.filename):
                    raise OneRankError(
                        f"{masked(url)} does not exist: copy the shards there, or index them again"
                    ) from error
                path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have deleted the cache meanwhile
                if last:
                    raise OneRankError(self._explain(url, error)) from error
                if not _is_full(error):
                    pause(attempt)

    def _is_inside(self, name: object) -> bool:
        """Tell whether a path that an error names lies in the cache, and not behind a URL."""
        return isinstance(name, str | os.PathLike) and Path(name).is_relative_to(self.folder)

    def _explain(self, url: str, error: Exception) -> str:
        url = masked(url)
        if _is_full(error):
            return f"{url} has no room on the disk of data.cache_folder = {self._given}: free some, or choose another folder"
        if isinstance(error, _WrongFileError | TooLongError):
            return f"{url}: {error} (changed since it was indexed, or cut off). Index the shards again with `m3p index`"
        return f"{url} could not be read in {ATTEMPTS} attempts; the last: {reason(error)}"

    def _make_room(self, size: int, limit: int) -> None:
        """Delete what was used longest ago until `size` more bytes are within `limit`."""
        with hold(self._room):
            files = []
            for path in self.folder.rglob("*"):
                with suppress(FileNotFoundError):  # another process has just renamed it
                    status = path.stat()
                    if path.is_file() and path.suffix != ".lock":
                        files.append((status.st_mtime, status.st_size, path))
            total = sum(size for _, size, _ in files)
            for _, old, path in sorted(files):
                if total + size <= limit:
                    return
                if path.suffix != ".partial" or _abandoned(path):
                    path.unlink(missing_ok=True)
                    total -= old


class _WrongFileError(Exception):
    """What arrived is not what was indexed."""


def _is_full(error: Exception) -> bool:
    """Tell whether the disk of the cache, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def _is_there(path: Path, size: int | None) -> bool:
    try:
        if size is not None and path.stat().st_size != size:
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _abandoned(partial: Path) -> bool:
    """Say whether nobody is downloading it any more."""
    with hold(partial.with_name(partial.name.removesuffix(".partial") + ".lock"), 0) as mine:
        return mine
