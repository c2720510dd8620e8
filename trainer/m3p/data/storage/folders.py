"""Folders of shards: local ones, and remote ones behind any fsspec URL. Either gives a file as a local path."""

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache, cached_property, partial
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import quote

import numpy as np
from fsspec.registry import known_implementations

from m3p.data.shards.fingerprint import is_whole, tar_fingerprint
from m3p.data.shards.index_file import MAX_MEMBERS, index_bytes
from m3p.data.shards.manifest import LARGEST_MANIFEST, MANIFEST_FILE, Manifest, check_shards
from m3p.data.shards.tar import TarError
from m3p.data.storage.cache import Cache, Wanted
from m3p.data.storage.remote import ATTEMPTS, pause, read, reason
from m3p.errors import OneRankError, UserError
from m3p.paths import masked, opened

PIECE = 8 * 2**20
"""Bytes that a process has under way when it reads ahead."""


class LocalFolder:
    """Files where they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest.load(path)
        check_shards(path, self.manifest)
        self.reads_ahead = True
        """Whether `fetch_ahead` does anything."""

    def __str__(self) -> str:
        return str(self.path)

    def file(self, name: str, size: int | None) -> Path:
        """Return the path of one file."""
        return self.path / name

    def forget(self, name: str) -> bool:
        """Say that a file is no copy that could be fetched again."""
        return False

    def fetch_ahead(self, shards: list[int]) -> None:
        """Have the system read `shards` into the memory it has to spare, in the background and from end to end.

        Sample by sample, in a shuffled order, a disk takes several times as long. A failure here shows when the shard is read.
        """
        for number in shards if self.reads_ahead else ():
            _background(os.getpid()).put(partial(_read_ahead, self.path / self.manifest.shards[number].name))


class RemoteFolder:
    """Files behind a URL, by way of the node's cache. The manifest is read anew at every start; shards when needed."""

    def __init__(self, url: str, cache: Cache) -> None:
        self.url, self._full, self._cache = masked(url).rstrip("/"), url.rstrip("/"), cache
        cache.make()
        content = _read(f"{self._full}/{MANIFEST_FILE}")
        self.manifest = Manifest.parse(content, self.url)
        if self.manifest.side_captions:
            raise UserError(
                f"{self.url}: has captions beside its shards, which are read from a local folder alone: copy the folder to a "
                "disk that the node sees, its links followed (cp -rL)"
            )
        # Named by its manifest, so that files of a source that was indexed again are not mixed with the old ones.
        self._place = hashlib.blake2b(self.url.encode() + content, digest_size=12).hexdigest()

    def __str__(self) -> str:
        return self.url

    def check_room(self, shards: int) -> None:
        """Raise UserError unless the cache holds the `shards` largest ones at once."""
        needed = int(np.sort(self.manifest.shards.bytes)[-shards:].sum())
        if needed > self._cache.limit:
            raise UserError(
                f"data.cache_bytes = {self._cache.limit:,}: two windows of {self.url} have up to {needed:,} bytes; raise it, "
                "or lower data.window"
            )

    def file(self, name: str, size: int | None) -> Path:
        """Return one file as a local path, downloaded if it is not in the cache. Raises OneRankError."""
        path = self._cache.get(self._url_of(name), f"{self._place}/{name}", self._wanted(name))
        assert path is not None, "it waits for its lock"
        return path

    def _wanted(self, name: str) -> Wanted:
        """Return what the file `name` has to be: a shard as the manifest says, or an index, which its reader looks at."""
        shard = self.manifest.shards[self._numbers[f"{name.rpartition('.')[0]}.tar"]]
        if name != shard.name:
            return Wanted(index_bytes(shard.samples, MAX_MEMBERS))
        return Wanted(shard.bytes, shard.bytes, partial(_content_fault, shard.fingerprint))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """The shards' numbers by name."""
        return {shard.name: number for number, shard in enumerate(self.manifest.shards)}

    def _url_of(self, name: str) -> str:
        """Over HTTP, what a name may hold and a URL may not is spelt another way; other stores take names as they are."""
        return f"{self._full}/{quote(name) if self._full.startswith('http') else name}"

    def forget(self, name: str) -> bool:
        """Delete the cache's copy of a file, so that `file` fetches it again; return whether it does."""
        self._cache.forget(f"{self._place}/{name}")
        return True

    def fetch_ahead(self, shards: list[int]) -> None:
        """Download `shards` in the background, but those that another process is fetching.

        A failure here shows when the shard is read, which tries again.
        """
        for number in shards:
            shard = self.manifest.shards[number]
            for name in (shard.name, shard.index_name):
                place, wanted = f"{self._place}/{name}", self._wanted(name)
                _background(os.getpid()).put(partial(self._cache.get, self._url_of(name), place, wanted, wait=False))


def _content_fault(fingerprint: str, path: Path) -> str | None:
    """Return how a shard that has arrived is another than the manifest says; None if it is the same.

    Once for each download: a damaged copy of the right size would stay in the cache after its server was mended.
    """
    try:
        if not is_whole(fingerprint) or tar_fingerprint(path) == fingerprint:
            return None
    except TarError as error:
        return f"it is no whole tar: {error}"
    return "its content is not what the manifest says"


Folder = LocalFolder | RemoteFolder


def open_folder(path: str | Path, cache: Cache | None, field: str) -> Folder:
    """Open the folder of shards `path`, a path or URL. Raises UserError, naming `field`."""
    shown, text = str(path), opened(str(path) if isinstance(path, Path) else path, field)
    if text.startswith("pipe:") or "::" in text:
        raise UserError(
            f"{field} = {shown}: commands are never run and URLs not chained; copy the shards, or give a plain URL (https://...)"
        )
    if not is_url(text):
        return LocalFolder(Path(text))
    protocol, _, place = text.partition("://")
    if not place.strip("/"):
        raise UserError(f"{field} = {shown}: names no folder; write it in full (https://host/folder)")
    if protocol not in known_implementations:
        raise UserError(f"{field} = {shown}: fsspec knows no {protocol}://; it knows https, s3, gs, hf, sftp and more")
    if cache is None:
        raise UserError(f"{field} = {shown} is remote: set data.cache_folder, a folder on a disk of the node")
    return RemoteFolder(text, cache)


def is_url(path: str) -> bool:
    """Tell URLs from paths."""
    return "://" in path or path.startswith("pipe:")


def _read(url: str) -> bytes:
    """Read one small file, with retries."""
    for attempt in range(ATTEMPTS):
        try:
            return read(url, LARGEST_MANIFEST)
        except FileNotFoundError:
            raise UserError(
                f"{masked(url)} does not exist: index the shards with `m3p index` before copying them there"
            ) from None
        # Every store has exceptions of its own, with no common class but this one.
        except Exception as error:
            if attempt == ATTEMPTS - 1:
                raise UserError(
                    f"{masked(url)} could not be read in {ATTEMPTS} attempts; the last: {reason(error)}. Look whether "
                    "the URL is right and its server answers"
                ) from error
            pause(attempt)
    raise AssertionError("the last attempt returns or raises")


def _read_ahead(path: Path) -> None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, PIECE):
            os.posix_fadvise(file.fileno(), start, PIECE, os.POSIX_FADV_WILLNEED)
            # Waits for its end, so that what is needed now does not queue behind whole windows.
            os.pread(file.fileno(), 1, min(start + PIECE, size) - 1)


@cache
def _background(process: int) -> "SimpleQueue[Callable[[], object]]":
    """Return where the thread of this process that fetches takes its work; a forked worker does not have that of its parent."""
    work: SimpleQueue[Callable[[], object]] = SimpleQueue()
    # A daemon: what is still to be fetched must not keep a process that is done.
    threading.Thread(target=_fetch, args=(work,), daemon=True, name="fetch").start()
    return work


def _fetch(work: "SimpleQueue[Callable[[], object]]") -> None:
    while True:
        with suppress(OSError, OneRankError):  # the shard is read later on, and says so then
            work.get()()
