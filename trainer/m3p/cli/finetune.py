"""The command `m3p finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from m3p.cli.arguments import DsConfigOption, Overrides, Ranks, RecipeArgument
from m3p.cli.train import default_ranks, threads_of_job, train_program
from m3p.console import PlainConsole
from m3p.shipped import find_ds_config, find_recipe
from m3p.terminal import say


def finetune_command(
    recipe: RecipeArgument,
    languages: Annotated[str, typer.Option(metavar="en,de,...", help="Languages of captions and queries.")],
    overrides: Overrides = None,
    settings: Annotated[
        str,
        typer.Option(
            metavar="none,en,each,all",
            help="none: model.weights as they are; a language; each: a run of each language; all: one run of all.",
        ),
    ] = "none,en,each,all",
    folder: Annotated[Path, typer.Option(help="Where the runs and the table go.")] = Path("runs/finetune"),
    deepspeed_config: DsConfigOption = "zero1",
    ranks: Ranks = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each of so many ranks; on a CPU alone.")] = 1,
) -> None:
    """Fine-tune on captions of one language, of each and of all, and score every setting in every way.

    The same command, started again, does only what is left. Writes FOLDER/finetune.json.
    """
    from m3p.ablation.ablate import launcher
    from m3p.ablation.finetune import finetune
    from m3p.ablation.grid import grid_tables

    path, ds_config = find_recipe(recipe), find_ds_config(deepspeed_config)
    ranks = ranks or default_ranks()
    threads = None if jobs == 1 else threads_of_job(jobs, ranks)
    train = launcher(lambda: train_program(ranks), path, str(ds_config), threads)
    grid = finetune(path, overrides or [], languages.split(","), settings.split(","), folder, train, jobs, ds_config)
    for table in grid_tables(grid):
        PlainConsole().print(table)
    say(f"{grid.method}\nsee {folder / 'finetune.json'}")
