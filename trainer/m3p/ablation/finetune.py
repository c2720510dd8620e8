"""`m3p finetune`: one start, fine-tuned on the captions of one language, of each, and of all, and scored in every way.

These are the settings of the M3P paper (arXiv 2006.02635): none, English only, each language alone, all languages together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3p.ablation.ablate import Train, train_all
from m3p.ablation.grid import Grid, rows
from m3p.ablation.made_of import differences, facts_of_code, facts_of_evaluation, note_of, weights_fact, write_note
from m3p.ablation.report import check_asked
from m3p.ablation.variants import Trial, Variant, refuse_folder
from m3p.checkpoints.selection import chosen
from m3p.errors import UserError
from m3p.recipe.evaluation import EvaluationConfig
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.retrieval.evaluate import Options, evaluate_run
from m3p.retrieval.ranking import Scoring
from m3p.retrieval.result import Evaluation
from m3p.terminal import say

NONE, EACH, ALL = "none", "each", "all"
"""Settings beside the codes of languages: the start as it is, a run of each language, one run of all of them."""


def finetune(
    recipe: Path,
    overrides: Sequence[str],
    languages: Sequence[str],
    settings: Sequence[str],
    folder: Path,
    train: Train,
    jobs: int = 1,
    ds_config: Path | None = None,
) -> Grid:
    """Train what the settings ask for, score each once in every way that its heads allow, and return the table.

    A run that has chosen a checkpoint (`run.select_on`) is scored by that one. What is trained and scored is not done again, so
    the same command, started again after a kill, does what is left. A result of other weights, other data, another setting or
    another version of the code is scored again, and a run of such is refused.
    Writes finetune.json into `folder`. Raises UserError for wrong settings, wrong fields, and a run that fails.
    """
    refuse_folder(overrides)
    base = load_recipe(recipe, overrides)
    check_asked(list(base.evaluation))
    _check(base, languages, settings)
    planned = {name: _trial(base, name, codes, folder) for name, codes in trained(languages, settings).items()}
    train_all(recipe, overrides, list(planned.values()), train, jobs, ds_config)
    starts = {name: chosen(trial.folder) for name, trial in planned.items()}
    if NONE in settings:
        assert base.model.weights is not None, "checked"
        starts[NONE] = base.model.weights
    scored = {
        name: {
            way: {
                run: _score(
                    base, path, _Cell(name, run, way, _asking(config, queries(run, languages, settings))), folder
                )
                for run, path in starts.items()
            }
            for way in ways(base)
        }
        for name, config in base.evaluation.items()
    }
    grid = Grid(
        recipe=str(recipe),
        overrides=list(overrides),
        languages=list(languages),
        settings=list(settings),
        selected_on=base.run.select_on,
        evaluations={
            name: {way: rows(of_way, languages, settings) for way, of_way in of_name.items()}
            for name, of_name in scored.items()
        },
    )
    grid.save(folder)
    return grid


def trained(languages: Sequence[str], settings: Sequence[str]) -> dict[str, list[str]]:
    """Return the runs that the settings need, by name, and the languages of the captions of each; none is there twice."""
    found: dict[str, list[str]] = {}
    for setting in settings:
        if setting == ALL:
            found[ALL] = list(languages)
        elif setting == EACH:
            found |= {language: [language] for language in languages}
        elif setting != NONE:
            found[setting] = [setting]
    return found


def queries(run: str, languages: Sequence[str], settings: Sequence[str]) -> list[str]:
    """Return the languages of the queries that a run is asked: all, or its own of a run that is there for `each` alone."""
    return [run] if run in languages and run not in settings else list(languages)


def ways(recipe: Recipe) -> list[Scoring]:
    """Return the ways of scoring that the tasks of a recipe train."""
    dual, cross = any(task.embeds for task in recipe.tasks), any(task.scores_pairs for task in recipe.tasks)
    possible: dict[Scoring, bool] = {"dual": dual, "cross": cross, "rerank": dual and cross}
    return [way for way, can in possible.items() if can]


def _check(base: Recipe, languages: Sequence[str], settings: Sequence[str]) -> None:
    """Raise UserError for settings and languages that make no grid."""
    for option, values in (("--languages", languages), ("--settings", settings)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"{option} {','.join(values)}: name one or more, each once")
    for setting in settings:
        if setting not in (NONE, EACH, ALL, *languages):
            raise UserError(f"--settings {setting}: it is none, each, all, or one of --languages {','.join(languages)}")
    if NONE in settings and base.model.weights is None:
        raise UserError(
            "--settings none scores what fine-tuning starts from: name it in model.weights, or leave none out"
        )
    switched = [
        name
        for name, config in base.active_objectives.items()
        if config.needs_pictures and hasattr(config, "switching")
    ]
    if switched:
        raise UserError(
            f"objectives.{switched[0]} switches the words of captions of one language, and the settings differ in languages: set "
            f"objectives.{switched[0]}.weight=0"
        )


def _trial(base: Recipe, name: str, languages: Sequence[str], folder: Path) -> Trial:
    """Return the run that trains on the captions of these languages."""
    places = [
        f"objectives.{objective}.sources.{number}.languages=[{','.join(languages)}]"
        for objective, config in base.active_objectives.items()
        if config.needs_pictures
        for number in range(len(config.sources))
    ]
    return Trial(Variant(name, (*places, "run.evaluate=false")), base.run.seed, folder / name)


@dataclass(frozen=True)
class _Cell:
    """What one run is asked in one way."""

    name: str
    """Of the evaluation."""
    run: str
    way: Scoring
    config: EvaluationConfig


def _asking(config: EvaluationConfig, languages: list[str]) -> EvaluationConfig:
    return config.model_copy(update={"languages": languages})


def _score(base: Recipe, path: Path, cell: _Cell, folder: Path) -> Evaluation:
    """Score the run in `path`, unless just this was scored before: the same weights, data, settings and code."""
    place = folder / "results" / f"{cell.name}-{cell.run}-{cell.way}.json"
    settings = cell.config.model_dump(mode="json").items()
    facts = {
        "weights": weights_fact(path),
        "way of scoring": cell.way,
        **{f"evaluation.{cell.name}.{field}": str(value) for field, value in settings},
        **facts_of_evaluation(base, cell.name, cell.config),
        **facts_of_code(),
    }
    if place.is_file():
        if not (lines := differences(place, facts)):
            return Evaluation.load(place)
        say(f"{place}: scored again, since it was made of something else: {'; '.join(lines)}")
        note_of(place).unlink(missing_ok=True)  # what it says is not true of what comes
    options = Options(scoring=cell.way, given={cell.name: cell.config}, json_file=place, folder=folder / cell.run)
    (found,) = evaluate_run(path, options=options)
    write_note(place, facts)
    return found
