"""The manifest of a source: which shards it has, how many samples each holds, and what is in them."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)

from m3p.atomic import write_text
from m3p.data.kinds import KINDS
from m3p.data.shards.index_file import index_faults, is_index_size
from m3p.data.shards.shard_table import Shard, ShardTable, read_json
from m3p.errors import UserError
from m3p.visual.tower.store import StoredTower

NOT_STATED = "not stated"
"""Value of a field of `origin` of which the imported files say nothing."""
FORMAT_VERSION: Literal[1] = 1
MANIFEST_FILE = "manifest.json"
LARGEST_MANIFEST = 256 * 2**20
"""Bytes of a manifest that is read: one of 100,000 shards has 20 MB."""
CHECKSUM = 16
"""Bytes of its checksum."""


def _is_kind(name: str) -> str:
    if name not in KINDS:
        raise ValueError(f"{name!r} is no kind of samples; known are {', '.join(KINDS)}")
    return name


Kind = Annotated[str, AfterValidator(_is_kind)]
"""Name of a kind of samples (`m3p.data.kinds`)."""


def _is_table(shards: Any) -> Any:
    if not isinstance(shards, ShardTable):
        raise ValueError("want a list of shards")
    return shards


class Manifest(BaseModel):
    """What a source holds: written as manifest.json beside its shards."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    format_version: Literal[1] = 1
    """Version of this file's layout."""
    kind: Kind
    """What its samples are."""
    language: str | None = None
    """Text: its language. Captions: the language of plain KEY.txt captions, null where captions name their own."""
    samples: Annotated[int, Field(ge=0)]
    """Samples over all shards."""
    captions: dict[str, int] = {}
    """How many samples have a caption in each language; empty for text."""
    region_features: Annotated[int, Field(ge=1)] | None = None
    """Width D of the stored region features; null without regions."""
    stored_tower: StoredTower | None = None
    """Which tower made the tokens that stand in the place of pictures; null with pictures."""
    without_picture: Annotated[int, Field(ge=0)] = 0
    """Samples that have stored features and no picture, as features are handed round."""
    origin: dict[str, str] = {}
    """What was imported: set, task, split, caption_source and licence of a published set; captions_per_picture of all."""
    side_captions: dict[str, str] = {}
    """Hash of the file of captions beside each shard that has one, by the shard's name: data/shards/side_captions.py."""
    shards: Annotated[ShardTable, BeforeValidator(_is_table)]
    """In the order that positions count them."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        total = int(self.shards.samples.sum())
        if total != self.samples:
            raise ValueError(f"samples is {self.samples}, but its shards hold {total}")
        if not total:
            raise ValueError("its shards hold no sample")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("a shard is listed twice")
        if KINDS[self.kind].needs_language and self.language is None:
            raise ValueError(f"{self.kind} needs a language")
        return self

    @field_serializer("shards")
    def _as_objects(self, shards: ShardTable) -> list[dict[str, Any]]:
        return [shard._asdict() for shard in shards]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the manifest of `folder`. Raises UserError where it is missing, broken, or of another version."""
        path = folder / MANIFEST_FILE
        try:
            with path.open("rb") as file:
                content = file.read(LARGEST_MANIFEST + 1)
        except FileNotFoundError:
            raise UserError(
                f"{folder} is not a source: it has no {MANIFEST_FILE}. Write one from raw data with `m3p prepare ...`, or "
                f"index tars made elsewhere with `m3p index {folder} --kind {'|'.join(KINDS)}`."
            ) from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}).") from None
        return cls.parse(content, str(folder))

    @classmethod
    def parse(cls, text: bytes, folder: str) -> Self:
        """Read `text`, the content of the manifest of `folder`. Raises UserError where it is broken or of another version."""
        path = f"{folder}/{MANIFEST_FILE}"
        # What lies behind a URL cannot be indexed there.
        where = "FOLDER" if "://" in folder else folder
        again = f"make it again with `m3p index {where} --kind {'|'.join(KINDS)}`" + (
            ", and copy it there" if "://" in folder else ""
        )
        try:
            if len(text) > LARGEST_MANIFEST:
                raise ValueError(f"it has more than {LARGEST_MANIFEST:,} bytes")
            content = read_json(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({error}): {again}.") from None
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(f"{path}: format_version is {version!r}, this program reads {FORMAT_VERSION}: {again}.")
        checksum = content.pop("checksum", None)
        try:
            found = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise UserError(f"{path}: {field}: {first['msg']}: {again}.") from None
        if checksum is not None and checksum != found.checksum():
            raise UserError(
                f"{path} is damaged, or was changed by hand: its checksum is another. If it was meant to change, delete the "
                f"field checksum in it; else {again}."
            )
        return found

    def checksum(self) -> str:
        """Return the checksum of all fields; what stands in the file beside them. Manifests of earlier versions have none."""
        # Without fields that say nothing, so that a later version may have more of them.
        return hashlib.blake2b(self.model_dump_json(exclude_defaults=True).encode(), digest_size=CHECKSUM).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder`; a reader sees the old file or the new one, never a part."""
    # The checksum stands in a line of its own behind the brace: what is left without that line can be read.
    body = manifest.model_dump_json(indent=1).removeprefix("{")
    write_text(folder / MANIFEST_FILE, f'{{\n "checksum": "{manifest.checksum()}",{body}\n')


def check_shards(folder: Path, manifest: Manifest) -> None:
    """Raise UserError unless every tar is there with the size that was indexed, and has its index.

    Names up to five bad shards, so that a half-copied source is seen as one, before a run has spent an hour on it.
    """
    sizes = _sizes(folder, manifest)
    samples, wanted = (np.array([getattr(shard, name) for shard in manifest.shards]) for name in ("samples", "bytes"))
    suspects = ((sizes[:, 0] != wanted) | ~is_index_size(sizes[:, 1], samples)).nonzero()[0].tolist()
    bad = [
        f"{manifest.shards[number].name} {reason}"
        for number in suspects
        for reason in _faults(folder, manifest.shards[number], *sizes[number].tolist())
    ]
    if bad:
        more = f", and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise UserError(
            f"{folder}: {'; '.join(bad[:5])}{more}. Copy the shards here again, or, if they were meant to change, "
            f"run `m3p index {folder} --kind {manifest.kind}"
            f"{f' --language {manifest.language}' if manifest.language else ''}`."
        )


def _sizes(folder: Path, manifest: Manifest) -> NDArray[np.int64]:
    """Return the bytes of each shard and of its index, [shards, 2], -1 for a file that is not there.

    By one listing instead of three system calls a shard: for 100,000 shards it takes a second.
    """
    numbers = {shard.name: number for number, shard in enumerate(manifest.shards)}
    sizes = np.full((len(numbers), 2), -1, np.int64)
    for entry in os.scandir(folder):
        stem, _, suffix = entry.name.rpartition(".")
        number = numbers.get(f"{stem}.tar") if suffix in ("tar", "idx") else None
        if number is not None and entry.is_file():
            sizes[number, int(suffix == "idx")] = entry.stat().st_size
    return sizes


def _faults(folder: Path, shard: Shard, size: int, index_size: int) -> Iterator[str]:
    if size < 0:
        yield "is missing"
    elif size != shard.bytes:
        yield f"has {size:,} bytes but was indexed with {shard.bytes:,} (truncated, or changed since)"
    elif index_size < 0:
        yield f"has no index ({shard.index_name})"
    elif not is_index_size(index_size, shard.samples):
        yield from index_faults(folder / shard.index_name, shard.samples)
