"""The gallery of an evaluation: every picture of its source, with the captions that ask for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from tqdm import tqdm

from m3p.batch import Picture
from m3p.data.kinds import CAPTIONS
from m3p.data.order.shuffle import Place
from m3p.data.records import Members
from m3p.data.sample import Sample
from m3p.data.shards.fingerprint import name_of
from m3p.data.source import Source, SourceConfig
from m3p.errors import BadSample, UserError
from m3p.recipe.evaluation import EvaluationConfig
from m3p.recipe.recipe import Recipe
from m3p.retrieval.pool import Pool
from m3p.retrieval.protocols import PROTOCOLS
from m3p.runs import Run
from m3p.terminal import one_line, warn
from m3p.visual import main_file
from m3p.visual.decode import decode, picture_kind

KEPT_BYTES = 512 << 20
"""Bytes of pictures, as the network takes them, that a gallery keeps in memory."""
SHOWN = 96
"""Side of a picture when it is shown, in pixels."""


@dataclass
class Pictures:
    """The gallery: every picture of an evaluation's source."""

    source: Source
    places: list[Place]
    visuals: Sequence[Picture]
    pool: Pool
    unreadable: list[str]
    """Samples that cannot be read and are left out of the pool, as "shard, sample NUMBER: reason"."""


class Visuals(Sequence[Picture]):
    """The pictures of a gallery: the first `KEPT_BYTES` of them stay in memory, others are read again when they are asked for."""

    def __init__(self, source: Source, places: list[Place], kept: list[Picture]) -> None:
        self._source, self.places, self._kept = source, places, kept

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, wanted: int) -> Picture: ...
    @overload
    def __getitem__(self, wanted: slice) -> "Visuals": ...

    def __getitem__(self, wanted: int | slice) -> "Picture | Visuals":
        if isinstance(wanted, slice):
            return Visuals(self._source, self.places[wanted], self._kept[wanted])
        if 0 <= wanted < len(self._kept):
            return self._kept[wanted]
        place = self.places[wanted]
        return self._source.try_sample(place.shard, place.sample).picture


def open_source(recipe: Recipe, name: str, config: EvaluationConfig) -> Source:
    """Open the source of evaluation `name`, without reading a sample. Raises UserError where it cannot be evaluated."""
    assert recipe.visual is not None, "a recipe without pictures has no evaluation"
    try:
        source = Source(Path(config.path), SourceConfig(path=config.path), (0, name, 0), 1, recipe.visual.load)
        manifest = source.manifest
        recipe.visual.check_source(str(source.folder), manifest.region_features, manifest.without_picture)
        recipe.visual.check_stored(str(source.folder), manifest.stored_tower)
    except UserError as error:
        raise UserError(f"evaluation.{name}: {error}") from error
    known = source.manifest.captions
    if missing := [language for language in config.languages or [] if language not in known]:
        raise UserError(
            f"evaluation.{name}.languages: {config.path} has no caption in {', '.join(missing)}; it has {', '.join(known)}"
        )
    return source


def check_evaluations(recipe: Recipe) -> None:
    """Open the sources of all evaluations: a mistake is to be seen before the training. Raises UserError."""
    for name, config in recipe.evaluation.items():
        open_source(recipe, name, config)
        if config.centre is not None:
            open_captions(name, config.centre)


def open_captions(name: str, path: str) -> Source:
    """Open the captions that the queries of evaluation `name` are centred by, without their pictures. Raises UserError."""
    try:
        return Source(Path(path), SourceConfig(path=path), (0, name, "centre"), 1, None, kind=CAPTIONS)
    except UserError as error:
        raise UserError(f"evaluation.{name}.centre: {error}") from error


def load_pictures(recipe: Recipe, name: str, config: EvaluationConfig) -> Pictures:
    """Read the whole gallery of an evaluation, not augmented. Samples of equal pictures are one picture with all their captions.

    A sample that cannot be read is left out of the pool with its captions, said and named in the result.
    Raises UserError where none can be read, or two pictures have one id: each would count as right for the other's
    captions.
    """
    source = open_source(recipe, name, config)
    gallery = _Gallery(name, config.path)
    unreadable: list[str] = []
    for shard, entry in enumerate(source.manifest.shards):
        for number in tqdm(
            range(entry.samples), desc=one_line(f"{name}: {entry.name}"), unit="picture", leave=False, disable=None
        ):
            place = Place(0, shard, number)
            try:
                sample = source.try_sample(shard, number)
            except BadSample as reason:
                unreadable.append(f"{entry.name}, sample {number}: {reason}")
                continue
            content = sample.content or _content(source.members(shard, number))
            gallery.add(place, sample, content, f"{entry.name}, sample {number}", f"{entry.name}#{number}")
    _say_unreadable(name, config.path, unreadable, source.manifest.samples)
    if gallery.repeated:
        warn(
            f"evaluation.{name}: {gallery.repeated:,} samples of {config.path} have a picture that another has too: its "
            f"{source.manifest.samples:,} samples count as {len(gallery.places):,} pictures with all their captions"
        )
    languages = config.languages or sorted(source.manifest.captions)
    pool = PROTOCOLS[config.protocol].pool(gallery.records, languages)
    visuals = Visuals(source, gallery.places[: len(pool.images)], gallery.kept)
    return Pictures(source, visuals.places, visuals, pool, unreadable)


def gallery_of(run: Run, name: str) -> Pictures:
    """Return the pictures of evaluation `name` of the recipe of `run`, with their captions. Raises UserError."""
    return load_pictures(run.recipe, name, run.evaluation(name))


def _say_unreadable(name: str, path: str, unreadable: list[str], samples: int) -> None:
    """Say which samples are left out. Raises UserError where none is left."""
    if unreadable and len(unreadable) == samples:
        raise UserError(f"evaluation.{name}: no picture of {path} can be read; the first: {unreadable[0]}")
    if unreadable:
        shown = "; ".join(unreadable[:3]) + ("; ..." if len(unreadable) > 3 else "")
        warn(f"evaluation.{name}: {len(unreadable):,} of {samples:,} samples cannot be read and are left out: {shown}")


class _Gallery:
    """The pictures of an evaluation that have been read so far."""

    def __init__(self, name: str, path: str) -> None:
        self._name, self._path = name, path
        self.places: list[Place] = []
        self.kept: list[Picture] = []
        """The first pictures, as many as `KEPT_BYTES` hold."""
        self._kept_bytes = 0
        self.records: list[dict[str, Any]] = []
        """Of each picture its id, concept and captions."""
        self.repeated = 0
        """Samples whose picture was there already."""
        self._by_content: dict[tuple[str, str | None], dict[str, Any]] = {}
        self._seen: dict[str, str] = {}

    def add(self, place: Place, sample: Sample, content: str, here: str, otherwise: str) -> None:
        """Take a sample in, which is `here` and has the id `otherwise` if none of its own. Raises UserError for an id twice."""
        concept = None if sample.concept in (sample.name, sample.content) else sample.concept
        if content and (content, concept) in self._by_content:
            self.repeated += 1
            captions = self._by_content[content, concept]["captions"]
            for language, texts in sample.captions.items():
                captions[language] = list(dict.fromkeys([*captions.get(language, []), *texts]))
            return
        own = sample.id or otherwise
        if own in self._seen:
            raise UserError(
                f"evaluation.{self._name}: {self._path} has two pictures with the id {own!r}: {self._seen[own]}, and {here}. "
                "Give each its own, or none of them any"
            )
        self._seen[own] = here
        record = {"id": own, "concept": concept, "captions": dict(sample.captions)}
        self._by_content[content, concept] = record
        self._keep(sample.picture)
        self.places.append(place)
        self.records.append(record)

    def _keep(self, picture: Picture) -> None:
        """Keep the picture of the next place in memory, unless one before was left out for lack of room."""
        self._kept_bytes += picture.features.nbytes
        if self._kept_bytes <= KEPT_BYTES:
            self.kept.append(picture)


def _content(members: Members) -> str:
    """Return the name of a stored picture, or of its stored features; "" for an empty file."""
    stored = members.get(main_file(members) or "", b"")
    return name_of(stored) if stored else ""


def picture_bytes(pictures: Pictures, number: int) -> bytes:
    """Return a picture of the gallery as it is stored; empty where there is none that can be shown."""
    return stored_picture(pictures.source, pictures.places[number])


def stored_picture(source: Source, place: Place) -> bytes:
    """Return a sample's picture as it is stored; empty where it has regions alone, or a picture that cannot be decoded."""
    members = source.members(place.shard, place.sample)
    kind = picture_kind(members)
    stored = bytes(members[kind]) if kind else b""
    try:
        decode(stored, SHOWN)
    except BadSample:
        return b""
    return stored
