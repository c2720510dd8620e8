"""A source: one folder of shards, read in its endless order. A mix: the sources of one objective, read by position."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from trainer.batch import VisualTokens
from trainer.data.manifest import Manifest, check_shards
from trainer.data.order import Place, SourceOrder
from trainer.data.reader import ShardReader
from trainer.data.shares import Shares, temperature_weights
from trainer.errors import BadSample, UserError
from trainer.keys import generator, key

MOST_REPLACED = 100
"""Bad samples in a row after which their source is given up."""


class SourceConfig(BaseModel):
    """One entry of an objective's `sources`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(
        description="A folder of shards, or a pattern such as data_shards/text/* for one source a folder."
    )
    weight: float | None = Field(
        None, gt=0, description="Share among the sources; all or none. Without: by temperature."
    )
    languages: list[str] | None = Field(
        None, description="Caption languages to use, each equally likely; all if left out."
    )


class LoadPicture(Protocol):
    """What a visual source does to the members of a sample."""

    def __call__(self, members: dict[str, bytes], rng: np.random.Generator | None) -> VisualTokens:
        """Raises BadSample."""


@dataclass(frozen=True)
class Sample:
    """One sample, read and decoded."""

    name: str
    """Source, shard and key, for messages."""
    owner: int
    """What its random choices are keyed by: the hash of seed, objective, source, epoch, shard, sample."""
    language: str
    text: str
    """The passage of a text source; "" for pictures."""
    captions: dict[str, list[str]]
    concept: str
    """Pictures of one concept share their captions; the sample's own name where there is none."""
    visual: VisualTokens | None

    def generator(self, purpose: str) -> np.random.Generator:
        """The sample's own generator for `purpose`: the same in every run, on every rank, in every worker."""
        return generator(self.owner, purpose)


@dataclass
class BadSamples:
    """Bad samples met since the last look, as "shard/key: reason"."""

    seen: list[str]


class Source:
    """One folder of shards.

    Args:
        folder: with manifest.json.
        owner: (seed, objective, source number), the key of its order.
        window: shards whose samples are shuffled together.
        load_picture: decodes the picture of a sample; None for text.

    Raises:
        UserError: no manifest, a missing or changed shard, or no caption in the wanted languages.
    """

    def __init__(
        self,
        folder: Path,
        config: SourceConfig,
        owner: tuple[int | str, ...],
        window: int,
        load_picture: LoadPicture | None,
    ) -> None:
        self.folder, self._config, self._load_picture = folder, config, load_picture
        self._owner = key(*owner)
        self.manifest = Manifest.load(folder)
        check_shards(folder, self.manifest)
        _check_kind(folder, self.manifest, config, load_picture)
        counts = [shard.samples for shard in self.manifest.shards]
        self.order = SourceOrder(counts, window, key(*owner, "order"))
        self._counts = counts
        self._reader = ShardReader([folder / shard.name for shard in self.manifest.shards])

    def read(self, index: int, bad: BadSamples, augment: bool = True) -> Sample:
        """Return the sample at `index` of the endless order.

        A bad sample is replaced by the next one of its shard, so that all ranks and resumes agree, and noted in `bad`.
        """
        return self.read_place(self.order.place(index), bad, augment)

    def read_many(self, indices: NDArray[np.int64], bad: BadSamples) -> list[Sample]:
        """Return the samples at `indices` [N] of the endless order."""
        places = self.order.locate(indices)
        rows = zip(places.epoch.tolist(), places.shard.tolist(), places.sample.tolist(), strict=True)
        return [self.read_place(Place(*row), bad, True) for row in rows]

    def read_place(self, place: Place, bad: BadSamples, augment: bool) -> Sample:
        """As `read`, from a place in the shards."""
        for further in range(min(MOST_REPLACED, self._counts[place.shard])):
            number = (place.sample + further) % self._counts[place.shard]
            try:
                return self._decode(place, number, augment)
            except BadSample as reason:
                bad.seen.append(f"{self._name(place.shard)}, sample {number}: {reason}")
        raise UserError(
            f"{self.folder / self.manifest.shards[place.shard].name}: {further + 1} bad samples in a row; "
            f"the last: {bad.seen[-1]}. Prepare this source again, or take it out of the recipe."
        )

    def members(self, shard: int, sample: int) -> dict[str, bytes]:
        """Return a sample as stored: extension -> bytes. Raises BadSample."""
        return self._reader.read(shard, sample)

    def _name(self, shard: int) -> str:
        return f"{self.folder.name}/{self.manifest.shards[shard].name}"

    def _decode(self, place: Place, number: int, augment: bool) -> Sample:
        name = self._name(place.shard)
        members = self.members(place.shard, number)
        owner = key(self._owner, place.epoch, place.shard, number)
        language = self.manifest.language or ""
        if self.manifest.kind == "text":
            return Sample(name, owner, language, _text(members), {}, "", None)
        record = _record(members, self.manifest.language)
        captions = _captions(record, self._config.languages)
        key_name = f"{name}/{record.get('id', number)}"
        concept = str(record.get("concept", key_name))
        _check_unicode("id or concept", key_name, concept)
        rng = generator(owner, "augment") if augment else None
        visual = self._load_picture(members, rng) if self._load_picture else None
        return Sample(key_name, owner, "", "", captions, concept, visual)


class Mix:
    """The sources of one objective. Position -> source and index in it, by exact shares without state."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float | None], temperature: float) -> None:
        self.sources = list(sources)
        given = [weight for weight in weights if weight is not None]
        sizes = [source.manifest.samples for source in sources]
        self.weights = given if len(given) == len(sizes) else temperature_weights(sizes, temperature)
        self._shares = Shares(self.weights)

    def read(self, position: int, bad: BadSamples) -> Sample:
        """Return the sample at `position` of the objective's endless order."""
        source, index = self._shares.place(position)
        return self.sources[source].read(index, bad)

    def read_many(self, positions: range, bad: BadSamples) -> dict[int, Sample]:
        """Return the samples at `positions`; places are computed for all at once, and read source by source."""
        sources, indices = self._shares.locate(np.arange(positions.start, positions.stop))
        found: dict[int, Sample] = {}
        for number in np.unique(sources).tolist():
            mine = (sources == number).nonzero()[0]
            samples = self.sources[number].read_many(indices[mine], bad)
            found.update(zip((mine + positions.start).tolist(), samples, strict=True))
        return found


def find_folders(pattern: str, field: str) -> list[Path]:
    """Return the folder `pattern`, or the folders with a manifest that it matches. Raises UserError where none is."""
    if not any(sign in pattern for sign in "*?["):
        return [Path(pattern)]
    anchor = Path(pattern).anchor
    base, rest = (Path(anchor), pattern[len(anchor) :]) if anchor else (Path(), pattern)
    found = sorted(folder for folder in base.glob(rest) if (folder / "manifest.json").is_file())
    if not found:
        raise UserError(f"{field} = {pattern}: no folder with a manifest.json matches; make one with `m3p prepare`")
    return found


def _check_kind(folder: Path, manifest: Manifest, config: SourceConfig, load_picture: LoadPicture | None) -> None:
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


def _text(members: dict[str, bytes]) -> str:
    try:
        text = members["txt"].decode().strip()
    except KeyError as error:
        raise BadSample("no member txt") from error
    except UnicodeDecodeError as error:
        raise BadSample(f"txt is not UTF-8 ({error.reason})") from error
    if not text:
        raise BadSample("an empty text")
    return text


def _record(members: dict[str, bytes], language: str | None) -> dict[str, object]:
    """Return the JSON of a pair; a plain KEY.txt caption in `language` (img2dataset) stands in for missing captions."""
    try:
        record = json.loads(members["json"]) if "json" in members else {}
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, or a number of thousands of digits
        raise BadSample(f"json cannot be read ({error})") from error
    if not isinstance(record, dict):
        raise BadSample("json is not an object")
    if "captions" not in record:
        if language is None:
            raise BadSample("json has no captions, and the manifest names no language for txt (`m3p index --language`)")
        record = {**record, "captions": {language: [_text(members)]}}
    return record


def _captions(record: dict[str, object], languages: list[str] | None) -> dict[str, list[str]]:
    captions = record["captions"]
    if not isinstance(captions, dict):
        raise BadSample("captions is not an object of language -> texts")
    chosen: dict[str, list[str]] = {}
    _check_unicode("a language of captions", *captions)
    for language, texts in captions.items():
        if languages is not None and language not in languages:
            continue
        texts = [texts] if isinstance(texts, str) else texts
        if (
            not isinstance(texts, list)
            or not all(isinstance(text, str) and text.strip() for text in texts)
            or not texts
        ):
            raise BadSample(f"captions.{language} is not a list of texts, or one of them is empty")
        _check_unicode(f"captions.{language}", *texts)
        chosen[language] = texts
    if not chosen:
        raise BadSample(f"no caption in {', '.join(languages or [])}" if languages else "no caption")
    return chosen


def _check_unicode(field: str, *texts: str) -> None:
    """JSON can spell halves of characters ("\\ud800"), which nothing else can write."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise BadSample(f"{field} is not Unicode text ({error.reason})") from error
