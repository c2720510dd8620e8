"""Trains several runs one after the other on the same ranks: to start the ranks costs more than a tiny run does.

`many_runs.py --recipe FILE --deepspeed_config FOLDER NAME:STAGE:OVERRIDE,OVERRIDE ...`: each run goes to the folder NAME beside
the recipe, with FOLDER/zeroSTAGE.json.
"""

import argparse
from pathlib import Path

from m3p import distributed
from m3p.recipe.load import load_recipe
from m3p.training.train import train


def main() -> None:
    """Meet the other ranks, and train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--deepspeed_config", type=Path)
    parser.add_argument("--local_rank", type=int)
    parser.add_argument("runs", nargs="+")
    options = parser.parse_intermixed_args()
    ranks = distributed.start(300)
    for run in options.runs:
        name, stage, overrides = run.split(":")
        recipe = load_recipe(options.recipe, [f"run.folder={options.recipe.parent / name}", *overrides.split(",")])
        train(recipe, options.deepspeed_config / f"zero{stage}.json", ranks)
    distributed.finish()


if __name__ == "__main__":
    main()
