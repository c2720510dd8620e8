"""`m3p finetune`: one start, fine-tuned on the captions of one language, of each, and of all, and scored in every way.

These are the settings of the M3P paper (arXiv 2006.02635): none, English only, each language alone, all languages together.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from m3p.ablation.ablate import Train, train_all
from m3p.ablation.grid import Grid, Scored, rows
from m3p.ablation.report import check_asked
from m3p.ablation.variants import Trial, Variant
from m3p.errors import UserError
from m3p.recipe.evaluation import EvaluationConfig
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.retrieval.evaluate import Options, evaluate_run
from m3p.retrieval.ranking import Scoring
from m3p.retrieval.result import Evaluation

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
) -> Grid:
    """Train what the settings ask for, score each once in every way that its heads allow, and return the table.

    What is trained and scored is not done again, so the same command, started again after a kill, does what is left. Writes
    finetune.json into `folder`. Raises UserError for wrong settings, wrong fields, and a run that fails.
    """
    base = load_recipe(recipe, overrides)
    check_asked(list(base.evaluation))
    _check(base, languages, settings)
    planned = {name: _trial(base, name, codes, folder) for name, codes in trained(languages, settings).items()}
    train_all(recipe, overrides, list(planned.values()), train, jobs)
    starts = {name: trial.folder for name, trial in planned.items()}
    if NONE in settings:
        assert base.model.weights is not None, "checked"
        starts[NONE] = base.model.weights
    evaluations = {
        name: config.model_copy(update={"languages": list(languages)}) for name, config in base.evaluation.items()
    }
    scored = {
        name: {way: _score_all(starts, name, config, way, folder) for way in ways(base)}
        for name, config in evaluations.items()
    }
    grid = Grid(
        recipe=str(recipe),
        overrides=list(overrides),
        languages=list(languages),
        settings=list(settings),
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


def _score_all(starts: Mapping[str, Path], name: str, config: EvaluationConfig, way: Scoring, folder: Path) -> Scored:
    """Score every run in one way: run -> its result. What was scored before is read."""
    found = {}
    for run, path in starts.items():
        place = folder / "results" / f"{name}-{run}-{way}.json"
        if place.is_file():
            found[run] = Evaluation.load(place)
            continue
        options = Options(scoring=way, given={name: config}, json_file=place, folder=folder / run)
        (found[run],) = evaluate_run(path, options=options)
    return found
