"""`run.epochs`: how many steps so many epochs are, which the sources decide.

An epoch is over when every objective has drawn as many samples as its sources hold together. The steps are counted once, when the
recipe is loaded; what is trained, recorded and gone on with is `run.steps`.
"""

import math
from fractions import Fraction

from m3p.data.source import find_folders
from m3p.data.storage.cache import Cache
from m3p.data.storage.folders import open_folder
from m3p.recipe.recipe import Recipe


def steps_of_epoch(recipe: Recipe) -> tuple[Fraction, str]:
    """Return the steps of one epoch, and the objective that needs so many, in words. Raises UserError for missing sources."""
    plan, cache = recipe.plan(), None
    if recipe.data.cache_folder:
        cache = Cache(recipe.data.cache_folder, recipe.data.cache_bytes)
    turns = [plan.turn(number).objective for number in range(plan.cycle)]
    longest, words = Fraction(0), ""
    for name, config in recipe.active_objectives.items():
        samples = 0
        for entry in config.sources:
            field = f"objectives.{name}.sources.path"
            samples += sum(open_folder(path, cache, field).manifest.samples for path in find_folders(entry.path, field))
        turns_of_step = Fraction(turns.count(name) * plan.turns_per_step, plan.cycle)
        steps = Fraction(samples) / (config.batch_size * turns_of_step)
        if steps > longest:
            longest, words = (
                steps,
                f"{name}: {samples:,} samples, {config.batch_size} a turn, {float(turns_of_step):g} turn(s) a step",
            )
    return longest, words


def steps_of(epochs: float, recipe: Recipe) -> tuple[int, str]:
    """Return the steps of so many epochs, rounded up, and how they were counted, in words."""
    epoch, words = steps_of_epoch(recipe)
    return max(1, math.ceil(Fraction(str(epochs)) * epoch)), words
