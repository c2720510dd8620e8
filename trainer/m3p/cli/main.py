"""The command `m3p`."""

import errno
import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from m3p import __version__
from m3p.cli.arguments import DsConfigOption, Overrides, Ranks, RecipeArgument
from m3p.cli.data import data_app
from m3p.cli.features import add_features
from m3p.cli.finetune import finetune_command
from m3p.cli.linked import add_linked
from m3p.cli.prepare import index_command, prepare_app
from m3p.cli.published import add_published
from m3p.cli.regions import add_regions
from m3p.cli.search import add_search
from m3p.cli.train import default_ranks, recipes_command, slurm_command, threads_of_job, train_command, train_program
from m3p.console import PlainConsole
from m3p.errors import UserError, no_room, out_of_files, say_thread_failed
from m3p.recipe.evaluation import ProtocolName
from m3p.shipped import find_ds_config, find_recipe
from m3p.terminal import say, warn
from m3p.unicode_text import check_words

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command("train")(train_command)
app.command("finetune")(finetune_command)
app.command("recipes")(recipes_command)
app.command("slurm")(slurm_command)
add_published(prepare_app)
add_linked(prepare_app)
add_regions(prepare_app)
add_search(app)
add_features(prepare_app)
app.add_typer(prepare_app, name="prepare")
app.command("index")(index_command)
app.add_typer(data_app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"m3p {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Multilingual multimodal pre-training: prepare data, train, evaluate, search, export."""


NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}

Opened = Annotated[
    Path,
    typer.Argument(help="A run folder, one of its checkpoints, or a folder that `m3p export` wrote.", metavar="RUN"),
]


@app.command("show")
def show_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    field: Annotated[str, typer.Option(help="Print this field alone, such as run.folder.")] = "",
    deepspeed_config: Annotated[
        str,
        typer.Option("--deepspeed_config", "--deepspeed-config", help="Check also that this file, or name, exists."),
    ] = "",
) -> None:
    """Check a recipe and print it resolved."""
    import yaml

    from m3p.recipe.load import dump_recipe, load_recipe

    text = dump_recipe(load_recipe(find_recipe(recipe), overrides or []))
    if deepspeed_config:
        find_ds_config(deepspeed_config)
    if not field:
        for line in text.rstrip().splitlines():
            say(line)
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
    recipe: RecipeArgument,
    deepspeed_config: Annotated[str, typer.Argument(help="A file of DeepSpeed's settings, or a name such as zero1.")],
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, max=2**20, help="How many GPUs (ranks).")] = 8,
    kind: Annotated[str, typer.Option(help="Their kind, such as H100; or cpu.")] = "H100",
) -> None:
    """Predict memory by part, step time and MFU, without a GPU; exit code 1 where it does not fit."""
    from m3p.forecast.forecast import print_plan
    from m3p.recipe.load import load_recipe

    loaded, ds_config = load_recipe(find_recipe(recipe), overrides or []), find_ds_config(deepspeed_config)
    if not print_plan(loaded, ds_config, gpus, kind, PlainConsole()):
        raise typer.Exit(1)


@app.command("ablate")
def ablate_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="section.key=VALUE,VALUE", help="Values of a field; may be given again, for another field."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant, with run.seed counted up.")] = 3,
    folder: Annotated[Path, typer.Option(help="Where the runs and the comparison go.")] = Path("runs/ablation"),
    deepspeed_config: DsConfigOption = "zero1",
    ranks: Ranks = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each of so many ranks; on a CPU alone.")] = 1,
) -> None:
    """Train every combination of the varied fields, and compare each with the first, over queries and seeds.

    The same command, started again, does only what is left. Writes FOLDER/ablation.json and ablation.html.
    """
    from m3p.ablation.ablate import ablate, launcher
    from m3p.ablation.report import METHOD, tables

    if not vary:
        raise UserError("--vary is missing: name a field and two or more values, as in --vary model.dropout=0,0.1")
    path, ds_config = find_recipe(recipe), find_ds_config(deepspeed_config)
    ranks = ranks or default_ranks()
    threads = None if jobs == 1 else threads_of_job(jobs, ranks)
    train = launcher(lambda: train_program(ranks), path, str(ds_config), threads)
    report = ablate(path, overrides or [], vary, seeds, folder, train, jobs, ds_config)
    for table in tables(report):
        PlainConsole().print(table)
    say(f"{METHOD}\nsee {folder / 'ablation.html'}")


@app.command("evaluate")
def evaluate_command(
    run: Opened,
    names: Annotated[list[str] | None, typer.Argument(help="Evaluations of its recipe; all if none is named.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Score this folder of shards with captions, whatever the recipe names.")
    ] = None,
    scoring: Annotated[
        Literal["dual", "cross", "rerank"] | None,
        typer.Option(
            help="dual: cosines; cross: every pair through the encoder; rerank: the best of dual, scored by cross."
        ),
    ] = None,
    rerank: Annotated[int | None, typer.Option(min=0, help="Length of the shortlist that is scored again.")] = None,
    protocol: Annotated[
        ProtocolName | None,
        typer.Option(
            help="Which pictures and captions are the pool, and how hits are counted: native, m3p-compat, ..."
        ),
    ] = None,
    dual_weight: Annotated[
        float | None, typer.Option(min=0, help="Add the cosine, times this, to the score of the cross-encoder.")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Write scores with the ids of pictures and captions too.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the one result to this file too.")] = None,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = 0,
) -> None:
    """Score image retrieval of a run, a checkpoint or an export; writes evaluation/ in its folder.

    Under torchrun, deepspeed or srun, all ranks share the work. Started again after a kill, it goes on where it was.
    """
    from m3p.retrieval.evaluate import Options, evaluate_run

    evaluate_run(run, names or [], Options(rerank, scoring, protocol, dual_weight, data, json, save))


@app.command("compare")
def compare_command(
    results: Annotated[
        list[Path],
        typer.Argument(help="Two evaluation/NAME.json of the same pictures and captions; or runs and results."),
    ],
    published: Annotated[
        str,
        typer.Option(help="Set runs and results beside this published table: multi30k, coco, xflickrco, xtd, xm3600."),
    ] = "",
) -> None:
    """Print the paired difference of two evaluations, or runs beside published figures that were measured alike.

    A difference whose interval holds zero is called none.
    """
    from m3p.retrieval.comparison import compare
    from m3p.retrieval.published import beside_published, results_of
    from m3p.retrieval.result import Evaluation

    if published:
        for table in beside_published(published, results_of(results)):
            PlainConsole().print(table)
        return
    if len(results) != 2:
        raise UserError(f"compare: {len(results)} results; give two files, or any number of runs with --published")
    PlainConsole().print(compare(*map(Evaluation.load, results)))


@app.command("export")
def export_command(
    run: Opened,
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    format: Annotated[
        Literal["transformers", "sentence-transformers"],
        typer.Option(help="sentence-transformers adds its modules: texts in the space of the pictures."),
    ] = "transformers",
) -> None:
    """Write a run as one folder: its text encoder as other libraries load it, and all of it for model.weights."""
    from m3p.export import export_run

    say(export_run(run, output, format))


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    threading.excepthook = say_thread_failed
    try:
        check_words(sys.argv[1:])
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

    A full disk, too many open files and missing rights are never our doing. A path that is not there, or not of the right kind,
    may be one that we made up: only one inside a path of the command line, or a folder above such a path, is the user's.
    """
    file = f"{error.filename}: " if error.filename else ""
    if full := no_room(error) or out_of_files(error):
        return full
    if not file:
        return None
    if error.errno in NO_RIGHT:
        return f"{file}{error.strerror}; take another path, or get the right to this one"
    found = Path(os.path.abspath(str(error.filename)))
    named = [Path(os.path.abspath(path)) for word in words if (path := word.rpartition("=")[2])]
    users = any(found.is_relative_to(path) or path.is_relative_to(found) for path in named)
    return f"{file}{error.strerror}; check the path" if error.errno in NOT_THERE and users else None


if __name__ == "__main__":
    main()
