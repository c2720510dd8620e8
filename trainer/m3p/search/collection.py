"""Where pictures of an index come from: shards that `m3p prepare` or `m3p index` made, or a plain folder of pictures."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from m3p.batch import Picture
from m3p.data.records import Members
from m3p.data.shards.fingerprint import name_of
from m3p.data.shards.manifest import MANIFEST_FILE
from m3p.data.source import Source, SourceConfig
from m3p.errors import BadSample, UserError
from m3p.prepare.pictures import PictureFolder
from m3p.visual import VisualSource, main_file
from m3p.visual.decode import IMAGE_KINDS, picture_kind

MAX_CAPTION = 200
"""Characters of a caption that an index keeps, to be shown."""


class Origin(BaseModel):
    """Where pictures were read, as an index records it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["shards", "folder"]
    path: str
    """Absolute."""
    shards: dict[str, str] = {}
    """Name -> fingerprint of each shard that was read."""


@dataclass(frozen=True)
class Found:
    """A picture that was read and decoded, ready to be embedded."""

    id: str
    """The sample's own id; "shard#number" without one; of a folder the file's name in it."""
    content: str
    """Name of the picture's content, the same for equal pictures everywhere."""
    caption: str
    """Its first caption, cut to `MAX_CAPTION` characters; "" without one."""
    language: str
    """Language of the caption."""
    visual: Picture


class Collection(Protocol):
    """Pictures at places: "shard#number", or a file's name in its folder."""

    origin: Origin

    def places(self) -> Iterator[tuple[str, str]]:
        """Yield every place with a stamp, which tells a picture that has changed since; without reading pictures."""

    def read(self, place: str) -> Found:
        """Read and decode the picture at `place`, not augmented. Raises BadSample."""

    def stored(self, place: str) -> tuple[bytes, str]:
        """Return a picture as it is stored, empty where there are stored features alone, and its content's name.

        Raises BadSample, OSError, UserError.
        """


class Shards:
    """The samples of a folder of shards. Raises UserError where it does not fit `visual`."""

    def __init__(self, folder: Path, visual: VisualSource) -> None:
        path = folder.absolute()
        self._source = Source(path, SourceConfig(path=str(path)), (0, "search", 0), 1, visual.load)
        visual.check(str(path), self._source.manifest.region_features)
        entries = self._source.manifest.shards
        self.origin = Origin(kind="shards", path=str(path), shards={entry.name: entry.fingerprint for entry in entries})

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {entry.name: number for number, entry in enumerate(self._source.manifest.shards)}

    def places(self) -> Iterator[tuple[str, str]]:
        """Yield "shard#number" of every sample; the stamp is "", for shards have a fingerprint."""
        for entry in self._source.manifest.shards:
            yield from ((f"{entry.name}#{number}", "") for number in range(entry.samples))

    def read(self, place: str) -> Found:
        """Return the sample at `place`. Raises BadSample."""
        shard, number = self._parsed(place)
        sample = self._source.try_sample(shard, number)
        language, caption = next(((code, texts[0]) for code, texts in sample.captions.items() if texts), ("", ""))
        content = sample.content or _content(self._source.members(shard, number))
        return Found(sample.id or place, content, caption[:MAX_CAPTION], language, sample.picture)

    def stored(self, place: str) -> tuple[bytes, str]:
        """Return the sample's picture and its content's name. Raises BadSample."""
        members = self._source.members(*self._parsed(place))
        kind = picture_kind(members)
        return bytes(members[kind]) if kind else b"", _content(members)

    def _parsed(self, place: str) -> tuple[int, int]:
        """Return the shard's number and the sample's number in it. Raises BadSample where there is none (any more)."""
        name, _, number = place.rpartition("#")
        if name not in self._numbers or int(number) >= self._source.manifest.shards[self._numbers[name]].samples:
            raise BadSample(f"{self.origin.path} has no sample {place} any more")
        return self._numbers[name], int(number)


def _content(members: Members) -> str:
    stored = members.get(main_file(members) or "", b"")
    return name_of(stored) if stored else ""


class Folder:
    """The JPEG, PNG and WebP files of a folder and its sub-folders; links that lead out of it and hidden files are left out.

    Raises UserError where the network was trained on stored features: it cannot see pixels.
    """

    def __init__(self, folder: Path, visual: VisualSource) -> None:
        path = folder.absolute()
        if not visual.needs_pictures:
            raise UserError(
                f"{folder}: this network was trained on stored features and cannot see pixels; give shards with files "
                f"KEY.{visual.stored_file}"
            )
        self._visual, self._pictures = visual, PictureFolder(path)
        self.origin = Origin(kind="folder", path=str(path))

    def places(self) -> Iterator[tuple[str, str]]:
        """Yield the names of its pictures, in order; the stamp is the file's size and time of change."""
        base = self._pictures.folder
        for folder, folders, files in os.walk(base):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_KINDS:
                    path = Path(folder) / name
                    status = path.stat(follow_symlinks=False)
                    yield path.relative_to(base).as_posix(), f"{status.st_size} {status.st_mtime_ns}"

    def read(self, place: str) -> Found:
        """Return the picture of a file. Raises BadSample."""
        content, name = self.stored(place)
        return Found(place, name, "", "", self._visual.load(self._visual.files_of(content), None))

    def stored(self, place: str) -> tuple[bytes, str]:
        """Return a file's bytes and their content's name. Raises BadSample."""
        try:
            place.encode()
            content = self._pictures.content(place)
        except (OSError, ValueError) as error:
            raise BadSample(f"{place}: {error}") from error
        return content, name_of(content)


def open_collection(folder: Path, visual: VisualSource) -> Collection:
    """Open shards or a plain folder of pictures. Raises UserError."""
    if (folder / MANIFEST_FILE).is_file():
        return Shards(folder, visual)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of shards (with {MANIFEST_FILE}) or of pictures")
    return Folder(folder, visual)
