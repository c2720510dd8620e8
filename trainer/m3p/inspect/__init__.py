"""A look inside the data of a recipe, without training: the next micro-batches, figures of it, and what is wrong with it."""
