"""A source: one folder of shards, read in its endless order."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from m3p.batch import Picture
from m3p.data.kinds import CAPTIONS, TEXT, Kind, Record
from m3p.data.loader.picture_buffer import PictureMemory
from m3p.data.order.shuffle import Place, Places, SourceOrder
from m3p.data.records import Members
from m3p.data.sample import BadSamples, Sample
from m3p.data.samples import Samples
from m3p.data.shards.manifest import Manifest
from m3p.data.storage.folders import Folder, LocalFolder, RemoteFolder, is_url
from m3p.data.storage.reader import ShardReader
from m3p.errors import BadSample, UserError
from m3p.fields import MAY_CHANGE, Names
from m3p.keys import key
from m3p.paths import AddressField
from m3p.terminal import one_line

BYTES_OF_TOKEN = 4.2
"""Bytes of a token of text, until somebody measures it: the median of the languages that were tried, 3.3 to 11."""
MAX_TRIED_OF_SHARD = 10
"""Samples of one shard that are tried in place of a bad one."""
MAX_TRIED = 100
"""Samples of a source that are tried in place of a bad one; if all are bad, the run stops."""


class SourceConfig(BaseModel):
    """One entry of an objective's `sources`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: AddressField = Field(
        json_schema_extra=MAY_CHANGE,
        description="A folder of shards, any fsspec URL of one (https://..., s3://...), or a pattern such as "
        "data_shards/text/* for one source a folder.",
    )
    weight: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Share among the sources; all or none. Without: by temperature."
    )
    languages: Names | None = Field(
        None, min_length=1, description="Caption languages to use, each equally likely; all if left out."
    )


class LoadPicture(Protocol):
    """What a visual source does to the members of a sample."""

    def __call__(self, members: Members, draw: Iterator[float] | None, into: PictureMemory | None = None, /) -> Picture:
        """Decode the picture, into `into` if it fits there; `draw` gives random numbers to augment it. Raises BadSample."""


class Source:
    """One folder of shards.

    Args:
        folder: with manifest.json; local, or remote through the node's cache.
        owner: (seed, objective, source number), the key of its order.
        window: shards whose samples are shuffled together.
        load_picture: decodes the picture of a sample; None for kinds without pictures.
        augments: whether that draws random numbers.
        kind: of its samples; None: pairs if `load_picture` is given, else text.

    Raises:
        UserError: no manifest, a missing or changed shard, or no caption in the wanted languages.
    """

    def __init__(
        self,
        folder: Path | Folder,
        config: SourceConfig,
        owner: tuple[int | str, ...],
        window: int,
        load_picture: LoadPicture | None,
        augments: bool = True,
        kind: Kind | None = None,
    ) -> None:
        self.folder = folder = LocalFolder(folder) if isinstance(folder, Path) else folder
        self._config, self._load_picture, self._augments = config, load_picture, augments
        self.key = key(*owner)
        """Hash of `owner`, the first number of each of its samples' `owner`."""
        self.manifest = folder.manifest
        self.kind: Kind = kind or (CAPTIONS if load_picture else TEXT)
        _check_kind(folder, self.manifest, config, self.kind)
        self._read_record = self.kind.reader(self.manifest.language, config.languages)
        counts = self.manifest.shards.samples
        self._two_windows = 2 * window
        self.order = SourceOrder(counts, window, key(*owner, "order"))
        self._counts = counts
        if isinstance(folder, RemoteFolder):
            folder.check_room(self._two_windows)
        self._language = self.manifest.language or ""
        self._reader = ShardReader(folder)
        self._window: list[int] | None = None
        self.bytes_of_token = BYTES_OF_TOKEN
        """Bytes of a token of its text, for `lengths`; an objective that has the tokenizer may measure it."""
        self._names: dict[int, str] = {}

    @property
    def languages(self) -> list[str]:
        """Languages of the captions in use."""
        return self._config.languages or list(self.manifest.captions)

    @property
    def bytes_ahead(self) -> int:
        """Bytes of local shards that lie in memory at once while they are read a window ahead, at most."""
        if isinstance(self.folder, RemoteFolder):
            return 0
        return int(np.sort(self.manifest.shards.bytes)[-self._two_windows :].sum())

    def read(self, index: int, bad: BadSamples, augment: bool = True) -> Sample:
        """Return the sample at `index` of the endless order.

        A bad sample is replaced by the next good one, so that all ranks and resumes agree, and noted in `bad`.
        """
        return self.read_place(self.order.place(index), bad, augment)

    def read_many(self, indices: NDArray[np.int64]) -> Samples:
        """Return the samples at `indices` [N] of the endless order, but for their pictures, which `decode` reads.

        A bad sample is replaced, as by `read`.
        """
        if len(indices):
            self._fetch_ahead(int(indices[-1]))
        places = self.order.locate(indices)
        records, members, bad = self._read_files(places)
        names, contents = [self._name(shard) for shard in places.shard.tolist()], list[str]()
        if self.kind.has_pictures:
            label, numbers = self.kind.label, places.sample.tolist()
            names = [
                name if record is None else name + label(number, record)
                for name, number, record in zip(names, numbers, records, strict=True)
            ]
            contents = self._reader.pictures(places.shard, places.sample)
        owners = np.empty((len(records), len(places) + 1), np.uint64)
        owners[:, 0] = self.key
        owners[:, 1], owners[:, 2], owners[:, 3] = places
        found = Samples(names, owners, [self._language] * len(records), records, members, contents)
        for number, reason in bad.items():
            self.replace(found, number, reason)
        return found

    def _read_files(self, places: Places) -> tuple[list[Record | None], list[Members], dict[int, BadSample]]:
        """Return record and members of the samples at `places` [N], and what is wrong with those that have none, by number.

        Members are returned for samples with pictures alone: nothing else is read from them later.
        """
        if not self.kind.has_pictures:
            records, bad = self._reader.read_many(places.shard, places.sample, self._read_record)
            return records, [], bad
        read = self._read_record
        both, bad = self._reader.read_many(places.shard, places.sample, lambda members: (read(members), members))
        nothing: tuple[Record | None, Members] = (None, {})
        return *map(list, zip(*(one or nothing for one in both), strict=True)), bad  # type: ignore[return-value]

    def decode(self, sample: Sample, members: Members, into: PictureMemory | None = None, augment: bool = True) -> None:
        """Decode the picture of a sample of this source, into `into` if it fits there. Raises BadSample."""
        if self._load_picture is None:
            return
        draw = sample.draws("augment") if augment and self._augments else None
        try:
            sample.visual = self._load_picture(members, draw, into)
        except BadSample as reason:
            raise BadSample(f"{reason} (id {sample.id!r})" if sample.id else str(reason)) from reason

    def replace(self, samples: Samples, number: int, reason: BadSample) -> None:
        """Put the next good sample in the place of sample `number`, which is of this source and bad for `reason`."""
        _, epoch, shard, sample = samples.owners[number].tolist()
        bad = BadSamples([])
        good = self._replace(Place(epoch, shard, sample), reason, bad, True)
        samples.replace(number, good, *bad.seen)

    def read_place(self, place: Place, bad: BadSamples, augment: bool) -> Sample:
        """Return the sample at `place`, or the one that replaces it, as `read` does."""
        try:
            return self._read(place, place.sample, augment)
        except BadSample as reason:
            return self._replace(place, reason, bad, augment)

    def try_sample(self, shard: int, sample: int) -> Sample:
        """Return sample number `sample` of a shard, not augmented. Raises BadSample: nothing replaces it."""
        return self._read(Place(0, shard, sample), sample, augment=False)

    def _read(self, place: Place, number: int, augment: bool) -> Sample:
        members = self._reader.read(place.shard, number)
        record = self._read_record(members)
        name, content = self._name(place.shard), ""
        if self.kind.has_pictures:
            name += self.kind.label(number, record)
            content = self._reader.picture(place.shard, number)
        sample = Sample(name, (self.key, place.epoch, place.shard, number), self._language, record, content)
        self.decode(sample, members, augment=augment)
        return sample

    def _replace(self, place: Place, reason: BadSample, bad: BadSamples, augment: bool) -> Sample:
        """Return the next good sample, and note the one at `place`, bad for `reason`; others on the way have places of their own.

        A few of its shard are tried, then of the next shards: one that is damaged from end to end stops no run.
        """
        bad.seen.append(f"{self._name(place.shard)}, sample {place.sample}: {reason}")
        others = list(islice(self._after(place), MAX_TRIED))
        for shard, number in others:
            try:
                return self._read(place._replace(shard=shard), number, augment)
            except BadSample as another:
                last = f"{self._name(shard)}, sample {number}: {another}"
        raise UserError(
            f"{self.folder}: {len(others) + 1} bad samples in a row; the last: {last if others else bad.seen[-1]}. "
            "Prepare this source again, or take it out of the recipe."
        )

    def _after(self, place: Place) -> Iterator[tuple[int, int]]:
        """Yield shard and number of samples that may replace the one at `place`: a few of its shard, and of each one after it."""
        count, shards = int(self._counts[place.shard]), len(self._counts)
        for further in range(1, min(count, MAX_TRIED_OF_SHARD + 1)):
            yield place.shard, (place.sample + further) % count
        for further in range(1, shards):
            shard = (place.shard + further) % shards
            yield from ((shard, number) for number in range(min(int(self._counts[shard]), MAX_TRIED_OF_SHARD)))

    def _fetch_ahead(self, index: int) -> None:
        """Where a new window begins, have the one after it fetched, and let go of the shards before."""
        mine, after = self.order.shards(index)
        if mine == self._window:
            return
        if isinstance(self.folder, RemoteFolder):
            self._reader.keep([*mine, *after])
        self.folder.fetch_ahead(after if self._window else [*mine, *after])
        self._window = mine

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return roughly how many tokens the samples at `indices` [N] have, from the index files alone: [N].

        Of a picture the tokens that differ between samples are counted: regions, and no patches.
        """
        _, shards, samples = self.order.locate(indices)
        sizes = np.empty(len(indices), np.uint32)
        for shard in np.unique(shards).tolist():
            of_shard = (shards == shard).nonzero()[0]
            sizes[of_shard] = self._reader.sizes(shard, samples[of_shard])
        return self.kind.lengths(sizes, self.bytes_of_token, self.manifest.region_features)

    def members(self, shard: int, sample: int) -> Members:
        """Return a sample as stored: extension -> bytes. Raises BadSample."""
        return self._reader.read(shard, sample)

    def _name(self, shard: int) -> str:
        if shard not in self._names:
            self._names[shard] = one_line(f"{self.folder}/{self.manifest.shards[shard].name}")
        return self._names[shard]


def find_folders(pattern: str, field: str) -> list[str]:
    """Return the folder or URL `pattern`, or the folders with a manifest that it matches. Raises UserError for none."""
    if is_url(pattern) or os.path.isdir(pattern) or not any(sign in pattern for sign in "*?["):
        return [pattern]
    anchor = Path(pattern).anchor
    base, rest = (Path(anchor), pattern[len(anchor) :]) if anchor else (Path(), pattern)
    try:
        found = sorted(folder for folder in base.glob(rest) if _is_source(folder.relative_to(base), rest, folder))
    except ValueError as error:
        raise UserError(f"{field} = {pattern}: {error}; write ** between slashes, or * alone") from None
    if not found:
        raise UserError(f"{field} = {pattern}: no folder with a manifest.json matches; make one with `m3p prepare`")
    return [str(folder) for folder in found]


def _is_source(matched: Path, pattern: str, folder: Path) -> bool:
    """Tell whether a folder that a pattern matches has a manifest, and is hidden only where the pattern names hidden ones.

    `m3p prepare` writes into hidden folders, and keeps there what it is about to delete.
    """
    hidden, asked = (
        any(part.startswith(".") and part != ".." for part in parts) for parts in (matched.parts, Path(pattern).parts)
    )
    return (asked or not hidden) and (folder / "manifest.json").is_file()


def _check_kind(folder: Folder, manifest: Manifest, config: SourceConfig, kind: Kind) -> None:
    if manifest.kind != kind.name:
        raise UserError(
            f"{folder}: holds {manifest.kind}, but its objective wants {kind.name}; move it to another objective"
        )
    missing = [code for code in config.languages or [] if code not in manifest.captions]
    if missing:
        known = ", ".join(sorted(manifest.captions)) or "none"
        raise UserError(
            f"{folder}: no caption in {', '.join(missing)} (languages of its source in the recipe); it has captions in {known}"
        )
