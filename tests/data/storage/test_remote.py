"""Of trainer/m3p/data/storage/remote.py; with servers, retries and the cache it is tested in test_cache.py."""

from pathlib import Path

import fsspec
import pytest

from m3p.data.storage.remote import download, read, reason


def test_a_file_is_read_downloaded_or_missing(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/one/a.json", b"content")
    assert read("memory://one/a.json") == b"content"
    assert download("memory://one/a.json", tmp_path / "a") == 7
    assert (tmp_path / "a").read_bytes() == b"content"
    for ask in (read, lambda url: download(url, tmp_path / "b")):
        with pytest.raises(FileNotFoundError):
            ask("memory://one/b.json")


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
