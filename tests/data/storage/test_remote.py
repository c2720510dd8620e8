"""Of trainer/m3p/data/storage/remote.py; with servers, retries and the cache it is tested in test_cache.py."""

from functools import partial
from pathlib import Path

import fsspec
import pytest

from m3p.data.storage.remote import TooLongError, download, read, reason


def test_a_file_is_read_downloaded_or_missing(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/one/a.json", b"content")
    assert read("memory://one/a.json", 7) == b"content"
    assert download("memory://one/a.json", tmp_path / "a", 7) == 7
    assert (tmp_path / "a").read_bytes() == b"content"
    for ask in (partial(read, limit=9), partial(download, target=tmp_path / "b", limit=9)):
        with pytest.raises(FileNotFoundError):
            ask("memory://one/b.json")


@pytest.mark.parametrize("store", ["memory", "file"])
def test_no_more_is_kept_than_is_expected(tmp_path: Path, store: str) -> None:
    (tmp_path / "long").write_bytes(b"content")
    fsspec.filesystem("memory").pipe(f"{tmp_path}/long", b"content")
    for ask in (partial(read, limit=6), partial(download, target=tmp_path / "b", limit=6)):
        with pytest.raises(TooLongError, match=r"more than 6"):
            ask(f"{store}://{tmp_path}/long")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (TimeoutError(), "TimeoutError"),
        (OSError(28, "full"), "OSError: [Errno 28] full"),
    ],
)
def test_a_reason_without_text_is_its_class(error: Exception, text: str) -> None:
    assert reason(error) == text
