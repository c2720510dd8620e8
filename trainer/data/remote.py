"""Files behind any fsspec URL: read whole or downloaded, one attempt each.

`cat_file` and `get_file` ask for the file itself, and call it missing where its store says so. `fsspec.open` asks for its
size first, and over HTTP takes whatever goes wrong there, a 503 or a refused connection, for a missing file.
"""

import time
from pathlib import Path

import fsspec.core

ATTEMPTS = 5
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each pause is twice the one before."""


def read(url: str) -> bytes:
    """Return the content of a small file. Raises FileNotFoundError, or whatever its store raises."""
    store, path = fsspec.core.url_to_fs(url)
    content: bytes = store.cat_file(path)
    return content


def download(url: str, target: Path) -> int:
    """Copy a file to `target`, piece by piece in one request; return its bytes. Raises as `read` does."""
    store, path = fsspec.core.url_to_fs(url)
    store.get_file(path, str(target))
    return target.stat().st_size


def pause(attempt: int) -> None:
    """Wait after a failed attempt; the first is number 0."""
    time.sleep(FIRST_PAUSE * 2**attempt)
