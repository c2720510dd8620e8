"""The objectives of a recipe with their sources. Apart from the training, whose imports take seconds."""

from collections.abc import Iterable

from m3p.data.source import Source
from m3p.data.storage.cache import Cache
from m3p.data.storage.folders import LocalFolder
from m3p.data.tokenizer import Tokenizer
from m3p.objectives.objective import Context, Objective
from m3p.recipe.recipe import Recipe
from m3p.training.memory_limit import available_memory

FOR_FILES = 0.5
"""Share of the memory to spare that shards read ahead may fill; training itself takes more as it begins."""


def build_objectives(recipe: Recipe) -> dict[str, Objective]:
    """Build the active objectives, their sources checked. Raises UserError."""
    tokenizer, data = Tokenizer(recipe.tokenizer_folder), recipe.data
    cache = Cache(data.cache_folder, data.cache_bytes) if data.cache_folder else None
    objectives = {
        name: config.build(Context(name, recipe.run.seed, tokenizer, recipe.visual, data.window, cache))
        for name, config in recipe.active_objectives.items()
    }
    _read_ahead_what_fits([source for objective in objectives.values() for source in objective.mix.sources])
    return objectives


def _read_ahead_what_fits(sources: Iterable[Source]) -> None:
    """Have shards read ahead, those of small sources first, as far as memory goes: more would push out what is still needed."""
    room = FOR_FILES * available_memory()
    for source in sorted(sources, key=lambda source: source.bytes_ahead):
        room -= source.bytes_ahead
        if isinstance(source.folder, LocalFolder):
            source.folder.reads_ahead = room >= 0


def held_back(objectives: Iterable[Objective]) -> str:
    """Say in words that local shards are not read ahead, how many, and the way out; "" if all are read ahead."""
    sources = [source for objective in objectives for source in objective.mix.sources]
    late = [source for source in sources if isinstance(source.folder, LocalFolder) and not source.folder.reads_ahead]
    if not late:
        return ""
    size = sum(source.bytes_ahead for source in late) / 10**9
    return (
        f"of {len(late)} source(s) not read ahead: two windows of their shards, {size:,.1f} GB, do not fit into memory; "
        "lower data.window, or make smaller shards"
    )
