"""`m3p`: everything but training itself."""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from m3p.cli.data import data_app
from m3p.cli.prepare import index_command, prepare_app
from m3p.errors import UserError, no_room
from m3p.terminal import say, warn

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Tools of the M3P trainer.")
app.add_typer(prepare_app, name="prepare")
app.add_typer(data_app, name="data")
app.command("index")(index_command)

NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}

Run = Annotated[Path, typer.Argument(help="A run folder, runs/NAME.")]


@app.command("show")
def show_command(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value ...")] = None,
    field: Annotated[str, typer.Option(help="Print this field alone, such as run.folder.")] = "",
) -> None:
    """Check a recipe and print it resolved."""
    import yaml

    from m3p.recipe.load import dump_recipe, load_recipe

    text = dump_recipe(load_recipe(recipe, overrides or []))
    if not field:
        say(text.rstrip())
        return
    value = yaml.safe_load(text)
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"--field {field}: {recipe} has no such field, or leaves it out")
        value = value[part]
    say(
        value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...")
    )


@app.command("plan")
def plan_command(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    deepspeed_config: Annotated[Path, typer.Argument(help="A file of ds_configs/.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value ...")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many GPUs (ranks).")] = 8,
    kind: Annotated[str, typer.Option(help="Their kind, such as H100; or cpu.")] = "H100",
) -> None:
    """Predict memory by part, step time and MFU, without a GPU; exit code 1 where it does not fit."""
    from m3p.console import PlainConsole
    from m3p.forecast.forecast import print_plan
    from m3p.recipe.load import load_recipe

    if not print_plan(load_recipe(recipe, overrides or []), deepspeed_config, gpus, kind, PlainConsole()):
        raise typer.Exit(1)


@app.command("evaluate")
def evaluate_command(
    run: Run,
    names: Annotated[list[str] | None, typer.Argument(help="Evaluations of its recipe; all if none is named.")] = None,
    rerank: Annotated[int | None, typer.Option(min=0, help="Shortlist that the cross-encoder scores; 0: none.")] = None,
) -> None:
    """Score image retrieval of a run's newest checkpoint; writes RUN/evaluation/."""
    from m3p.retrieval.evaluate import evaluate_run

    evaluate_run(run, names or [], rerank)


@app.command("search")
def search_command(
    run: Run,
    query: Annotated[str, typer.Argument(help="In any language of the run.")],
    evaluation: Annotated[str, typer.Option(help="Whose pictures to search; the recipe's first if left out.")] = "",
    most: Annotated[int, typer.Option(min=1, help="Pictures to show.")] = 5,
) -> None:
    """Find pictures by words: prints the best and writes RUN/search.html."""
    from m3p.retrieval.search import search

    hits, page = search(run, query, evaluation, most)
    for place, hit in enumerate(hits, start=1):
        say(f"{place:3} {hit.score:7.3f}  {hit.image}")
    say(f"see {page}")


@app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(help="An evaluation/NAME.json.")],
    second: Annotated[Path, typer.Argument(help="Another, of the same pictures and captions.")],
) -> None:
    """Print the paired difference of two evaluations; one whose interval holds zero is called none."""
    from m3p.console import PlainConsole
    from m3p.retrieval.report import Evaluation, compare

    PlainConsole().print(compare(Evaluation.load(first), Evaluation.load(second)))


@app.command("export")
def export_command(run: Run, output: Annotated[Path, typer.Option(help="Folder to write.")]) -> None:
    """Write a run as one folder: its text encoder as `transformers` loads it, and all of it for model.weights."""
    from m3p.export import export_run

    say(export_run(run, output))


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    try:
        app()
    except UserError as error:
        _leave(str(error))
    except OSError as error:
        message = _mistake(error, sys.argv[1:])
        if message is None:
            raise
        _leave(message)


def _leave(message: str) -> NoReturn:
    warn(f"error: {message}")
    sys.exit(2)


def _mistake(error: OSError, words: list[str]) -> str | None:
    """Return what the user can mend about `error`, met by the command line `words`; None where a traceback is due.

    A full disk and rights that are missing are never our doing. A path that is not there, or not of the right kind, may be
    one that we made up: only one inside a path of the command line, or a folder above such a path, is the user's.
    """
    place = f"{error.filename}: " if error.filename else ""
    if full := no_room(error):
        return full
    if not place:
        return None
    if error.errno in NO_RIGHT:
        return f"{place}{error.strerror}; take another path, or get the right to this one"
    found = Path(os.path.abspath(str(error.filename)))
    named = [Path(os.path.abspath(path)) for word in words if (path := word.rpartition("=")[2])]
    users = any(found.is_relative_to(path) or path.is_relative_to(found) for path in named)
    return f"{place}{error.strerror}; check the path" if error.errno in NOT_THERE and users else None


if __name__ == "__main__":
    main()
