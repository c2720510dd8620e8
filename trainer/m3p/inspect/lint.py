"""Check the shards of a recipe before a run does: every problem, one line each, with where it is and the way out."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from m3p.data.origins import mixed_origins
from m3p.data.shards.fingerprint import is_whole
from m3p.data.shards.index import scan_tar
from m3p.data.shards.index_file import FORMER, index_faults, open_index
from m3p.data.shards.notes import notes
from m3p.data.shards.tar_index import TarIndex
from m3p.data.source import Source, find_folders
from m3p.data.storage.cache import Cache
from m3p.data.storage.folders import LocalFolder, open_folder
from m3p.data.tokenizer import Tokenizer
from m3p.errors import BadSample, UserError
from m3p.objectives.objective import ObjectiveConfig
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.retrieval.leaks import leaks, not_known
from m3p.retrieval.pictures import open_source

NOTE = "note: "
"""Begins what is worth knowing, and no problem."""


def lint(path: Path, overrides: Sequence[str], samples: int) -> Iterator[str]:
    """Yield the problems of a recipe and its shards, and notes; `samples` of each shard are read (0: all)."""
    try:
        recipe = load_recipe(path, overrides)
    except UserError as error:
        # The first line counts them; the others are one each.
        first, *others = str(error).splitlines()
        yield from (f"{path}: {line.removeprefix('  - ')}" for line in others or [first.removeprefix(f"{path}: ")])
        return
    opened: dict[str, Source] = {}
    for make in (recipe.plan, partial(Tokenizer, recipe.tokenizer_folder)):
        if problem := _fails(make):
            yield problem
    for name, config in recipe.active_objectives.items():
        if problem := _fails(config.check_files):
            yield f"objectives.{name}.{problem}"
        yield from _objective(recipe, name, config, samples, opened)
    for name, evaluation in recipe.evaluation.items():
        if problem := _fails(partial(open_source, recipe, name, evaluation)):
            yield problem
            return
    yield from _pictures_seen(recipe, {name: source for name, source in opened.items() if source.kind.has_pictures})


def _pictures_seen(recipe: Recipe, sources: dict[str, Source]) -> Iterator[str]:
    """Yield which pictures of evaluations training sees too, and why that may not be known."""
    try:
        yield from map(_line, leaks(recipe, sources))
        yield from (f"{NOTE}{line}" for line in (*mixed_origins(sources), *not_known(recipe, sources)))
    except UserError as error:
        yield _line(error)


def _fails(make: Callable[[], object]) -> str | None:
    """Call `make`; return its complaint in one line."""
    try:
        make()
    except UserError as error:
        return _line(error)
    return None


def _line(error: Exception | str) -> str:
    return " ".join(str(error).split())


def _objective(
    recipe: Recipe, name: str, config: ObjectiveConfig, samples: int, opened: dict[str, Source]
) -> Iterator[str]:
    """Check the sources of an objective; those that can be opened are put into `opened`."""
    total = 0
    for number, entry in enumerate(config.sources):
        field = f"objectives.{name}.sources.{number}"
        try:
            folders = find_folders(entry.path, f"{field}.path")
        except UserError as error:
            yield _line(error)
            continue
        for folder in folders:
            try:
                source = _open(recipe, name, config, number, folder)
            except UserError as error:
                text = _line(error)
                yield text if text.startswith(field) else f"{field}: {text}"
                continue
            total += source.manifest.samples
            opened[f"objectives.{name}, {folder}"] = source
            yield from _source(source, recipe, samples)
    if 0 < total < config.batch_size:
        yield (
            f"objectives.{name}.batch_size = {config.batch_size}: its sources hold {total} samples, so that a turn would "
            "hold some of them twice; lower it, or add sources"
        )


def _open(recipe: Recipe, name: str, config: ObjectiveConfig, number: int, path: str) -> Source:
    data, visual = recipe.data, recipe.visual
    cache = Cache(data.cache_folder, data.cache_bytes) if data.cache_folder else None
    folder = open_folder(path, cache, f"objectives.{name}.sources.{number}.path")
    pictures = visual if config.needs_pictures else None
    load = pictures.load if pictures else None
    source = Source(folder, config.sources[number], (recipe.run.seed, name, number), data.window, load)
    if pictures:
        pictures.check_source(str(folder), source.manifest.region_features, source.manifest.without_picture)
        pictures.check_stored(str(folder), source.manifest.stored_tower)
    config.check_source(source)
    return source


def _source(source: Source, recipe: Recipe, samples: int) -> Iterator[str]:
    """Check every shard: unchanged since it was indexed, and its samples usable."""
    read = bad = 0
    walked: dict[str, TarIndex] = {}
    for number, shard in enumerate(source.manifest.shards):
        if isinstance(source.folder, LocalFolder) and (problem := _changed(source, number, walked)):
            yield problem
            continue
        chosen = np.arange(shard.samples)
        if samples and shard.samples > samples:
            chosen = np.linspace(0, shard.samples - 1, samples).astype(np.int64)
        try:
            reasons = [(sample, reason) for sample in chosen.tolist() if (reason := _bad(source, number, sample))]
        except UserError as error:  # the shard itself cannot be read
            yield _line(error)
            continue
        read, bad = read + len(chosen), bad + len(reasons)
        for sample, reason in reasons:
            yield f"{source.folder}/{shard.name}, sample {sample}: {reason}; training skips it: mend it or leave it out"
    if walked:
        yield from (f"{NOTE}{note}" for note in notes(str(source.folder), walked))
    if not all(is_whole(shard.fingerprint) for shard in source.manifest.shards):
        yield (
            f"{NOTE}{source.folder}: was indexed by an earlier version, which saw less of the files: changes of their content, "
            f"damage and equal pictures may go unseen; run `m3p index {source.folder} --kind {source.manifest.kind}` again"
        )
    if bad > recipe.data.max_bad_share * read:
        yield (
            f"data.max_bad_share = {recipe.data.max_bad_share:g}: {bad} of {read} samples read of {source.folder} are bad, so "
            "that a run would stop; prepare it again, or raise it"
        )


def _bad(source: Source, shard: int, sample: int) -> str | None:
    try:
        source.try_sample(shard, sample)
    except BadSample as reason:
        return _line(reason)
    return None


def _changed(source: Source, number: int, walked: dict[str, TarIndex]) -> str | None:
    """Walk the tar once more, note in `walked` what is in it, and compare with what was indexed: its size alone does not tell."""
    folder, shard, manifest = source.folder, source.manifest.shards[number], source.manifest
    assert isinstance(folder, LocalFolder)
    path = folder.path / shard.name
    again = f"run `m3p index {folder} --kind {manifest.kind}` again if that was meant"
    try:
        found, index = scan_tar(path, manifest.kind, manifest.language or "en")
    except UserError as error:
        return _line(error)
    if is_whole(shard.fingerprint) and found.fingerprint != shard.fingerprint:
        return f"{path}: its members are not those that were indexed (changed since); {again}"
    walked[shard.name] = found
    index_path = folder.path / shard.index_name
    for fault in index_faults(index_path, shard.samples, shard.bytes, shard.fingerprint):
        return f"{path} {fault}; {again}"
    stored = open_index(index_path, shard.samples)
    same = zip(index[:FORMER], stored[:FORMER], strict=True)
    if not all(np.array_equal(np.asarray(ours), np.asarray(its)) for ours, its in same):
        return f"{index_path}: is not the index of this tar; {again}"
    return None
