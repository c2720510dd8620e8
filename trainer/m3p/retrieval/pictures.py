"""The gallery of an evaluation: every picture of its source, with the captions that ask for it."""

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from m3p.batch import Picture
from m3p.data.order.shuffle import Place
from m3p.data.sample import BadSamples
from m3p.data.source import Source, SourceConfig
from m3p.errors import BadSample, UserError
from m3p.recipe.evaluation import EvaluationConfig
from m3p.recipe.recipe import Recipe
from m3p.retrieval.metrics import Pool
from m3p.visual.decode import decode, picture_kind

SHOWN = 96
"""Side of a picture when it is shown, in pixels."""


@dataclass
class Pictures:
    """The gallery: every picture of an evaluation's source."""

    source: Source
    places: list[Place]
    visuals: list[Picture]
    pool: Pool


def open_source(recipe: Recipe, name: str, config: EvaluationConfig) -> Source:
    """Open the source of evaluation `name`, without reading a sample. Raises UserError where it cannot be evaluated."""
    assert recipe.visual is not None, "a recipe without pictures has no evaluation"
    try:
        source = Source(Path(config.path), SourceConfig(path=config.path), (0, name, 0), 1, recipe.visual.load)
        recipe.visual.check(str(source.folder), source.manifest.region_features)
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


def load_pictures(recipe: Recipe, name: str, config: EvaluationConfig) -> Pictures:
    """Read the whole gallery of an evaluation, not augmented.

    Raises UserError where a sample cannot be read, or two have one id: each would count as right for the other's captions.
    """
    source = open_source(recipe, name, config)
    places, visuals, records = [], [], []
    bad, seen = BadSamples([]), dict[str, str]()
    for shard, entry in enumerate(source.manifest.shards):
        for number in tqdm(
            range(entry.samples), desc=f"{name}: {entry.name}", unit="picture", leave=False, disable=None
        ):
            place = Place(0, shard, number)
            sample = source.read_place(place, bad, augment=False)
            if bad.seen:
                raise UserError(f"evaluation.{name}: every picture counts, and this one cannot be read: {bad.seen[0]}")
            here = f"{entry.name}, sample {number}"
            own = sample.id or f"{entry.name}#{number}"
            if own in seen:
                raise UserError(
                    f"evaluation.{name}: {config.path} has two pictures with the id {own!r}: {seen[own]}, and {here}. "
                    "Give each its own, or none of them any"
                )
            seen[own] = here
            places.append(place)
            visuals.append(sample.picture)
            concept = None if sample.concept == sample.name else sample.concept
            records.append({"id": own, "concept": concept, "captions": sample.captions})
    languages = config.languages or sorted(source.manifest.captions)
    return Pictures(source, places, visuals, Pool.of(records, languages))


def picture_bytes(pictures: Pictures, number: int) -> bytes:
    """Return the stored picture; empty where a source holds regions alone, or a picture that cannot be read beside them."""
    place = pictures.places[number]
    members = pictures.source.members(place.shard, place.sample)
    kind = picture_kind(members)
    stored = bytes(members[kind]) if kind else b""
    try:
        decode(stored, SHOWN)
    except BadSample:
        return b""
    return stored
