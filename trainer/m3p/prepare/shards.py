"""Write samples into WebDataset tars that are the same bytes on every machine."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import webdataset

from m3p.data.shards.index_folder import index_folder
from m3p.data.shards.manifest import Kind, Manifest


class ShardWriter:
    """Context manager: `write` samples into shard-000000.tar, shard-000001.tar, ... of `folder`.

    On a clean exit it writes every index and the manifest, kept as `self.manifest`. Owner, time and mode of members
    are fixed, and keys count the samples, so that the same samples give the same bytes. (Record ids are kept inside
    the JSON: as keys, their dots and slashes would be taken for extensions and folders.)
    """

    manifest: Manifest

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        samples_per_shard: int,
        language: str | None = None,
        origin: dict[str, str] | None = None,
    ) -> None:
        self.folder, self.kind, self.language = folder, kind, language
        self.samples_per_shard, self.origin = samples_per_shard, origin or {}
        self.samples = 0
        self._tar: Any = None
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, members: dict[str, bytes]) -> None:
        """Append one sample: {"jpg": ..., "json": ...}."""
        if self.samples % self.samples_per_shard == 0:
            self._close()
            self._open(self.samples // self.samples_per_shard)
        self._tar.write({"__key__": f"{self.samples:09d}", **members})
        self.samples += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()
        if kind is None:
            self.manifest = index_folder(self.folder, self.kind, self.language, self.origin)

    def _open(self, number: int) -> None:
        self._file = (self.folder / f"shard-{number:06d}.tar").open("wb")
        self._tar = webdataset.TarWriter(self._file, user="m3p", group="m3p", mode=0o644, mtime=0, encoder=False)

    def _close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._file.close()
            self._tar = None
