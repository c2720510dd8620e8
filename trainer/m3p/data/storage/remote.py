"""Files behind any fsspec URL: read whole or downloaded, one attempt each.

`get_file` asks for the file itself, and calls it missing where its store says so. `fsspec.open` asks for its
size first, and over HTTP takes whatever goes wrong there, a 503 or a refused connection, for a missing file.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import fsspec.core
from fsspec.callbacks import Callback

from m3p.paths import masked

ATTEMPTS = 5
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each pause is twice the one before."""
CONNECT_SECONDS = 30.0
READ_SECONDS = 60.0
"""Without a byte from an HTTP server, after which an attempt is given up."""


class TooLongError(Exception):
    """A body is longer than it may be; the rest was not read."""


class _Bound(Callback):  # type: ignore[misc] # fsspec has no types
    """Ends a download that brings more than `limit` bytes: fsspec tells it of every piece that has come."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def relative_update(self, inc: int = 1) -> None:
        """Count a piece. Raises TooLongError."""
        super().relative_update(inc)
        if self.value > self._limit:
            raise TooLongError(f"it has more than {self._limit:,} bytes")


def read(url: str, limit: int) -> bytes:
    """Return the content of a file of up to `limit` bytes. Raises FileNotFoundError, or as `download` does."""
    with tempfile.TemporaryDirectory(prefix="m3p-") as folder:
        target = Path(folder) / "file"
        download(url, target, limit)
        return target.read_bytes()


def download(url: str, target: Path, limit: int) -> int:
    """Copy a file to `target`, piece by piece in one request; return its bytes.

    Raises TooLongError where more than `limit` bytes come, which are not kept, or whatever its store raises.
    """
    store, path = fsspec.core.url_to_fs(url, **_options(url))
    store.get_file(path, str(target), callback=_Bound(limit))
    found = target.stat().st_size
    if found > limit:  # of a store that tells nothing of its pieces
        raise TooLongError(f"it has {found:,} bytes, more than {limit:,}")
    return found


def pause(attempt: int) -> None:
    """Wait after a failed attempt; the first is number 0."""
    time.sleep(FIRST_PAUSE * 2**attempt)


def reason(error: Exception) -> str:
    """Say what went wrong. fsspec's timeouts have no text of their own; what caused them has."""
    told = error if str(error) else error.__cause__ or error
    return f"{type(told).__name__}: {masked(str(told))}" if str(told) else type(told).__name__


def _options(url: str) -> dict[str, Any]:
    """Return what to open the store of `url` with.

    aiohttp ends a whole request after five minutes, which a large shard may well take: silence is what has to end. This is
    a setting of each request and not one of `client_kwargs`, which would replace those of the user's fsspec configuration.
    """
    if not url.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout  # takes a while, and most runs read no URL

    return {"timeout": ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)}
