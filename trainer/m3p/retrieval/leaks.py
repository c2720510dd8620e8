"""Pictures of evaluations that training sees too: refused before the first step, since their figures would say nothing.

The pictures of all sources of the run are looked at, and of the run whose weights it starts from (`model.weights`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from m3p.checkpoints.seen_pictures import MAX_KEPT, read_seen, write_seen
from m3p.data.identity import Gallery, Numbers, Shared, has_names, picture_numbers, unknown
from m3p.data.source import Source
from m3p.errors import UserError
from m3p.objectives.objective import Objective
from m3p.recipe.recipe import Recipe
from m3p.retrieval.pictures import open_source


def training_sources(objectives: Mapping[str, Objective]) -> dict[str, Source]:
    """Return the sources that have pictures, by what messages call them."""
    return {
        f"objectives.{name}, {source.folder}": source
        for name, objective in objectives.items()
        for source in objective.mix.sources
        if source.kind.has_pictures
    }


def leaks(recipe: Recipe, sources: Mapping[str, Source]) -> Iterator[str]:
    """Yield a message for each evaluation and each place in training that have pictures in common. Raises UserError."""
    checked = {name: config for name, config in recipe.evaluation.items() if not config.seen_in_training}
    before = recipe.model.weights
    seen = read_seen(before) if before is not None and checked else None
    for name, config in checked.items():
        test = open_source(recipe, name, config)
        gallery = Gallery(test)
        for field, source in sources.items():
            if (found := gallery.in_source(source)).pictures:
                yield _message(name, test, found, field)
        if seen is not None and (found := gallery.shared_with([seen])).pictures:
            yield _message(name, test, found, f"model.weights = {before}, which was trained on them")


def _message(name: str, test: Source, found: Shared, where: str) -> str:
    ids = ", ".join(found.ids) + (", ..." if found.pictures > len(found.ids) else "")
    return (
        f"evaluation.{name}: {found.pictures:,} of the {test.manifest.samples:,} pictures of {test.folder} are in {where}, "
        f"too: {ids}. "
        f"Prepare the training data again with --leave-out {test.folder} (tars that were only indexed: m3p prepare img2dataset "
        f"TARS --leave-out ...), or evaluate on other pictures; "
        f"evaluation.{name}.seen_in_training=true measures them all the same"
    )


def not_known(recipe: Recipe, sources: Mapping[str, Source]) -> Iterator[str]:
    """Yield what keeps pictures of evaluations from being found in the training data."""
    if not recipe.evaluation:
        return
    tests = {name: open_source(recipe, name, config) for name, config in recipe.evaluation.items()}
    for source in (*sources.values(), *tests.values()):
        if why := unknown(source):
            yield f"whether training sees pictures of evaluations is not wholly known: {why}"
    named = {str(source.folder): has_names(source) for source in sources.values()}
    for name, test in tests.items():
        named_so = has_names(test)
        if not recipe.evaluation[name].seen_in_training and (others := [at for at in named if named[at] != named_so]):
            yield (
                f"evaluation.{name}: of {test.folder} and {', '.join(others)}, only one side names its pictures as published "
                "sets do (published_id), so copies that were encoded again are not recognised: equal files are"
            )
    before = recipe.model.weights
    if before is not None and read_seen(before) is None:
        yield f"model.weights = {before} does not say what it was trained on, so that pictures of evaluations may be among it"


def check_leaks(recipe: Recipe, sources: Mapping[str, Source]) -> None:
    """Raise UserError where training sees a picture of an evaluation."""
    if found := list(leaks(recipe, sources)):
        raise UserError("\n".join(found))


def record_seen(recipe: Recipe, sources: Mapping[str, Source]) -> str:
    """Note in the run folder which pictures the run trains on, and those it started from; return why not, or "".

    What an earlier start of the run has noted stays.
    """
    folder, before = recipe.run.folder, recipe.model.weights
    if sum(source.manifest.samples for source in sources.values()) > MAX_KEPT:
        return f"more than {MAX_KEPT:,} samples: which pictures were trained on is not recorded"
    earlier = [read_seen(path) for path in (folder, before) if path is not None]
    if before is not None and earlier[-1] is None and earlier[0] is None:
        return f"model.weights = {before} does not say what it was trained on, so neither does this run"
    parts: list[Numbers] = [np.zeros(0, np.uint64), *(numbers for numbers in earlier if numbers is not None)]
    every = np.unique(np.concatenate([*parts, *(picture_numbers(source) for source in sources.values())]))
    if every.size <= MAX_KEPT:
        write_seen(Path(folder), every)
        return ""
    return f"more than {MAX_KEPT:,} pictures: which were trained on is not recorded"
