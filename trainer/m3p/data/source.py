"""A source: one folder of shards, read in its endless order."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from m3p.batch import Picture
from m3p.data.loader.picture_buffer import PictureSlot
from m3p.data.loader.threads import share
from m3p.data.order.shuffle import Place, Places, SourceOrder
from m3p.data.records import Members, choose_captions, passage, read_record
from m3p.data.sample import BadSamples, Sample, Texts
from m3p.data.shards.manifest import Manifest
from m3p.data.storage.folders import Folder, LocalFolder, RemoteFolder, is_url
from m3p.data.storage.reader import ShardReader
from m3p.errors import BadSample, UserError
from m3p.fields import MAY_CHANGE
from m3p.keys import key
from m3p.paths import AddressField
from m3p.terminal import one_line

BYTES_OF_TOKEN = 4.2
"""Of text, where nobody has measured it: the median of the languages that were tried, from 3.3 to 11."""
CAPTION_TOKENS = 20
"""Taken for every caption: the index does not know which of a picture's captions a sample draws."""
BYTES_OF_NUMBER = 2
"""Region features are float16."""
MAX_TRIED_OF_SHARD = 10
"""Samples of a shard that are tried in place of a bad one."""
MAX_TRIED = 100
"""And of all its source, before that is given up."""


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
    languages: list[str] | None = Field(
        None, min_length=1, description="Caption languages to use, each equally likely; all if left out."
    )


class LoadPicture(Protocol):
    """What a visual source does to the members of a sample."""

    def __call__(self, members: Members, draw: Iterator[float] | None, slot: PictureSlot | None = None, /) -> Picture:
        """Decode the picture, into `slot` if it fits there; `draw` gives random numbers to augment it. Raises BadSample."""


class Drawn(NamedTuple):
    """Samples of a source, read but for their pictures: [N] each."""

    places: Places
    contents: list[Members | BadSample]
    """Members of each; or why they cannot be read."""
    samples: list[Sample | BadSample]
    """Without their pictures; or why one cannot be read."""


class Source:
    """One folder of shards.

    Args:
        folder: with manifest.json; local, or remote through the node's cache.
        owner: (seed, objective, source number), the key of its order.
        window: shards whose samples are shuffled together.
        load_picture: decodes the picture of a sample; None for text.
        augments: whether that draws random numbers.

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
    ) -> None:
        self.folder = folder = LocalFolder(folder) if isinstance(folder, Path) else folder
        self._config, self._load_picture, self._augments = config, load_picture, augments
        self._owner = key(*owner)
        self.manifest = folder.manifest
        _check_kind(folder, self.manifest, config, load_picture)
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
        """Of text, for `lengths`; whoever has the tokenizer may know better."""
        self._names: dict[int, str] = {}

    @property
    def languages(self) -> list[str]:
        """Those of the captions in use."""
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

    def draw(self, indices: NDArray[np.int64]) -> Drawn:
        """Read the samples at `indices` [N] of the endless order, but for their pictures; places are computed together."""
        self._fetch_ahead(int(indices[-1]))
        places = self.order.locate(indices)
        contents = self._reader.read_many(places.shard, places.sample)
        samples = map(self._try, *(column.tolist() for column in places), contents)
        return Drawn(places, contents, list(samples))

    def decode(self, drawn: Drawn, bad: BadSamples, slots: Sequence[PictureSlot | None] = ()) -> list[Sample]:
        """Return the samples with their pictures, decoded into `slots` [N] by the threads of this process.

        Bad ones are replaced as by `read`.
        """
        found, contents = drawn.samples, drawn.contents
        slots = slots or [None] * len(found)

        def work(part: range) -> None:
            for number in part:
                sample, content = found[number], contents[number]
                if isinstance(sample, Sample) and not isinstance(content, BadSample):
                    try:
                        self._decode(sample, content, True, slots[number])
                    except BadSample as reason:
                        found[number] = reason

        share(work, len(found))
        return [
            self._replace(drawn.places.at(number), one, bad, True) if isinstance(one, BadSample) else one
            for number, one in enumerate(found)
        ]

    def read_texts(self, indices: NDArray[np.int64]) -> Texts:
        """As `draw` and `decode`, of a source of text, without an object for each passage: that would cost more than reading."""
        self._fetch_ahead(int(indices[-1]))
        places = self.order.locate(indices)
        _, shards, samples = places
        owners = np.empty((len(shards), 4), np.uint64)
        owners[:, 0] = self._owner
        owners[:, 1], owners[:, 2], owners[:, 3] = places
        names = [self._name(shard) for shard in shards.tolist()]
        found = Texts([], names, [self._language] * len(names), owners, [])
        for number, content in enumerate(self._reader.lone_files(shards, samples, "txt")):
            try:
                stored: bytes | memoryview | None = content
                if stored is None:
                    stored = self._reader.read(int(shards[number]), int(samples[number])).get("txt")
                found.texts.append(passage(stored))
            except BadSample as reason:
                bad = BadSamples([])
                sample = self._replace(places.at(number), reason, bad, True)
                owners[number] = sample.owner
                found.texts.append(sample.text)
                found.bad.extend((number, message) for message in bad.seen)
        return found

    def read_place(self, place: Place, bad: BadSamples, augment: bool) -> Sample:
        """As `read`, from a place in the shards."""
        try:
            return self._read(place, place.sample, augment)
        except BadSample as reason:
            return self._replace(place, reason, bad, augment)

    def try_sample(self, shard: int, sample: int) -> Sample:
        """Return this very sample, replaced by no other. Raises BadSample."""
        return self._read(Place(0, shard, sample), sample, augment=False)

    def _read(self, place: Place, number: int, augment: bool) -> Sample:
        content = self._reader.read(place.shard, number)
        sample = self._describe(place.epoch, place.shard, number, content)
        self._decode(sample, content, augment, None)
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
        sizes = np.empty(len(indices))
        for shard in np.unique(shards).tolist():
            of_shard = (shards == shard).nonzero()[0]
            sizes[of_shard] = self._reader.sizes(shard, samples[of_shard])
        if self.manifest.kind == "text":
            return sizes / self.bytes_of_token
        return CAPTION_TOKENS + sizes / (BYTES_OF_NUMBER * (self.manifest.region_features or 1))

    def members(self, shard: int, sample: int) -> Members:
        """Return a sample as stored: extension -> bytes. Raises BadSample."""
        return self._reader.read(shard, sample)

    def _name(self, shard: int) -> str:
        if shard not in self._names:
            self._names[shard] = one_line(f"{self.folder}/{self.manifest.shards[shard].name}")
        return self._names[shard]

    def _try(self, epoch: int, shard: int, number: int, members: Members | BadSample) -> Sample | BadSample:
        """As `_describe`; return why it cannot be read."""
        if isinstance(members, BadSample):
            return members
        try:
            return self._describe(epoch, shard, number, members)
        except BadSample as reason:
            return reason

    def _describe(self, epoch: int, shard: int, number: int, members: Members) -> Sample:
        """Return a sample without its picture. Raises BadSample."""
        name, owner = self._name(shard), (self._owner, epoch, shard, number)
        if self._load_picture is None:
            return Sample(name, owner, self._language, passage(members.get("txt")), {}, "")
        record = read_record(members, self.manifest.language)
        captions = choose_captions(record.captions, self._config.languages)
        name += f"/{record.id}" if record.id else f"#{number}"
        content = self._reader.picture(shard, number)
        return Sample(name, owner, "", "", captions, record.concept or content or name, record.id, content)

    def _decode(self, sample: Sample, members: Members, augment: bool, slot: PictureSlot | None) -> None:
        """Decode the picture of a sample, into `slot` if it fits there. Raises BadSample."""
        if self._load_picture is None:
            return
        draw = sample.draws("augment") if augment and self._augments else None
        try:
            sample.visual = self._load_picture(members, draw, slot)
        except BadSample as reason:
            raise BadSample(f"{reason} (id {sample.id!r})" if sample.id else str(reason)) from reason


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


def _check_kind(folder: Folder, manifest: Manifest, config: SourceConfig, load_picture: LoadPicture | None) -> None:
    wanted = "text" if load_picture is None else "captions"
    if manifest.kind != wanted:
        raise UserError(
            f"{folder}: holds {manifest.kind}, but its objective wants {wanted}; move it to another objective"
        )
    missing = [code for code in config.languages or [] if code not in manifest.captions]
    if missing:
        known = ", ".join(sorted(manifest.captions)) or "none"
        raise UserError(
            f"{folder}: no caption in {', '.join(missing)} (languages of its source in the recipe); it has captions in {known}"
        )
