"""The objectives of a recipe with their sources. Apart from the training, whose imports take seconds."""

from trainer.data.cache import Cache
from trainer.data.tokenizer import Tokenizer
from trainer.objectives.objective import Context, Objective
from trainer.recipe import Recipe


def build_objectives(recipe: Recipe) -> dict[str, Objective]:
    """Build the active objectives, their sources checked. Raises UserError."""
    tokenizer, data = Tokenizer(recipe.tokenizer_folder), recipe.data
    cache = Cache(data.cache_folder, data.cache_bytes) if data.cache_folder else None
    return {
        name: config.build(Context(name, recipe.run.seed, tokenizer, recipe.visual, data.window, cache))
        for name, config in recipe.active_objectives.items()
    }
