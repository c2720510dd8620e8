"""Trains the runs of an ablation one after the other, and compares them."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from m3p.ablation.report import Report, check_asked, load_evaluations, rows
from m3p.ablation.variants import Trial, Variant, parse_variation, trials, variants
from m3p.errors import UserError
from m3p.recipe.load import dump_recipe, load_recipe
from m3p.recipe.recipe import Recipe

Train = Callable[[Sequence[str]], int]
"""Trains the recipe with overrides through the launcher, and returns its exit code."""


def ablate(
    recipe: Path, overrides: Sequence[str], vary: Sequence[str], seeds: int, folder: Path, train: Train
) -> Report:
    """Train every combination of the varied fields with every seed, and return the comparison with the first combination.

    A run that is complete is not trained again, and one that was cut off goes on from its last checkpoint. So the same command,
    started again after a kill, does only what is left. Writes ablation.json and ablation.html into `folder`.
    Raises UserError for wrong fields, for runs of another recipe in the folder, and for a run that fails.
    """
    found = variants([parse_variation(text) for text in vary])
    base = load_recipe(recipe, overrides)
    check_asked(list(base.evaluation))
    planned = trials(found, seeds, base.run.seed, folder)
    recipes = {trial: load_recipe(recipe, [*overrides, *trial.overrides]) for trial in planned}  # every mistake now
    for trial, resolved in recipes.items():
        if not _is_complete(trial, resolved):
            code = train([*overrides, *trial.overrides])
            if code or not _is_complete(trial, resolved):
                raise UserError(
                    f"{trial.folder}: the run of {trial.variant.name} with seed {trial.seed} is not complete (exit code {code}); "
                    "its messages stand above. Starting the same command again goes on there"
                )
    report = compare(found, planned, list(base.evaluation), str(recipe), list(overrides))
    report.save(folder)
    return report


def compare(
    found: Sequence[Variant], done: Sequence[Trial], evaluations: Sequence[str], recipe: str, overrides: list[str]
) -> Report:
    """Return the report of runs that are complete. Raises UserError where an evaluation is missing."""
    folders = {variant: [trial.folder for trial in done if trial.variant == variant] for variant in found}
    return Report(
        recipe=recipe,
        overrides=overrides,
        seeds=sorted({trial.seed for trial in done}),
        evaluations={name: rows(load_evaluations(folders, name)) for name in evaluations},
    )


def _is_complete(trial: Trial, resolved: Recipe) -> bool:
    """Say whether a run is done. Raises UserError where its folder holds a run of another recipe that is done."""
    status = trial.folder / "status"
    if not status.is_file() or status.read_text(encoding="utf-8").strip() != "done":
        return False
    record = trial.folder / "recipe.yaml"
    if record.read_text(encoding="utf-8") != dump_recipe(resolved):
        raise UserError(
            f"{record}: this run was trained by another recipe than {trial.variant.name} with seed {trial.seed} is now; name "
            "another --folder, or move this one away"
        )
    return True


def launcher(program: Sequence[str], recipe: Path, ds_config: str) -> Train:
    """Return what trains through `program`, a command that starts the ranks."""

    def train(overrides: Sequence[str]) -> int:
        command = [*program, "--recipe", str(recipe), "--deepspeed_config", ds_config, *overrides]
        return subprocess.run(command, check=False).returncode

    return train
