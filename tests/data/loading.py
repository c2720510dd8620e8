"""Loads the turns of a recipe as one rank does and writes what it saw.

python -m tests.data.loading RECIPE RANKS RANK FIRST LAST OUT [PAUSE]
"""

import sys
import time
from pathlib import Path

from m3p.data.loader.loader import DataConfig, MicroBatches, load
from m3p.data.order.plan import MicroBatchPlan
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives
from m3p.training.stop import ignore_in_worker


def main(recipe_path: str, ranks: str, rank: str, first: str, last: str, out: str, pause: str = "0") -> None:
    """Write one line a step: its number, then the name and the packed words of every micro-batch."""
    recipe = load_recipe(Path(recipe_path))
    sizes = {name: config.micro_batch for name, config in recipe.active_objectives.items()}
    plan = MicroBatchPlan(recipe.plan(), int(ranks), int(rank), sizes)
    steps = range(int(first), int(last))
    batches = load(
        MicroBatches(plan, build_objectives(recipe)),
        plan.first_of_step(steps.start),
        plan.first_of_step(steps.stop),
        DataConfig(workers=1),
        False,
        ignore_in_worker,
    )
    with Path(out).open("w") as file:
        for step in steps:
            number = plan.first_of_step(step + 1) - plan.first_of_step(step)
            seen = [next(batches) for _ in range(number)]
            words = sum(int(batch.token_ids.sum()) for batch in seen if batch.samples)
            file.write(f"{step}\t{words}\t{','.join(name for batch in seen for name in batch.names)}\n")
            file.flush()
            time.sleep(float(pause))


if __name__ == "__main__":
    main(*sys.argv[1:])
