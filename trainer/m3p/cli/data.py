"""`m3p data`: see the next micro-batches, count what there is, and check the shards against a recipe."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from m3p.cli.arguments import Overrides, RecipeArgument
from m3p.errors import UserError
from m3p.shipped import find_recipe
from m3p.terminal import say

data_app = typer.Typer(no_args_is_help=True, help="Look into the data of a recipe.")


@data_app.command("peek")
def peek_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("peek.html"),
    step: Annotated[
        int, typer.Option(min=1, help="Step whose turns are shown, counted from 1 as in metrics.jsonl.")
    ] = 1,
    limit: Annotated[int, typer.Option(min=1, help="Samples of each turn to show.")] = 12,
) -> None:
    """Write the micro-batches of a step as one page: pictures, captions, masked and switched words, as the network gets them."""
    from m3p.inspect.page import page
    from m3p.inspect.peek import peek
    from m3p.recipe.load import load_recipe
    from m3p.training.build_objectives import build_objectives

    _check_writable("--output", output)
    loaded = load_recipe(find_recipe(recipe), overrides or [])
    turns = peek(loaded, build_objectives(loaded), step, limit)
    output.write_text(page(turns, f"{Path(recipe).name}, step {step}"), encoding="utf-8")
    say(f"{sum(len(turn.samples) for turn in turns)} samples of {len(turns)} turns: see {output}")


@data_app.command("stats")
def stats_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of each source that are read for the lengths.")] = 1000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Print counts, languages, lengths, switch coverage and bad samples of every source."""
    from m3p.inspect.stats import stats
    from m3p.recipe.load import load_recipe
    from m3p.training.build_objectives import build_objectives

    if json_file:
        _check_writable("--json", json_file)
    loaded = load_recipe(find_recipe(recipe), overrides or [])
    found = stats(build_objectives(loaded), samples)
    for source in found:
        for line in source.lines():
            say(line)
    if json_file:
        json_file.write_text(json.dumps([source.model_dump() for source in found], indent=1, ensure_ascii=False) + "\n")


def _check_writable(option: str, path: Path) -> None:
    """Raise UserError for a file that cannot be written, before much is read for it."""
    folder = path.parent
    fits = not path.is_dir() if path.exists() else folder.is_dir()
    if not (fits and os.access(path if path.exists() else folder, os.W_OK)):
        raise UserError(f"{option} {path}: cannot be written; name a file in a folder that is there and may be written")


@data_app.command("lint")
def lint_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=0, help="Samples of each shard that are read; 0: every one.")] = 20,
) -> None:
    """Check shards against the recipe. One line a problem: where, the rule, the way out; exit code 1 if there is one.

    Lines that begin with "note" are not problems.
    """
    from m3p.inspect.lint import NOTE, lint

    problems = 0
    for problem in lint(find_recipe(recipe), overrides or [], samples):
        say(problem)
        problems += not problem.startswith(NOTE)
    if problems:
        raise typer.Exit(1)
    say("no problem found")
