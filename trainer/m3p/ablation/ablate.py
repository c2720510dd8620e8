"""Trains the runs of an ablation, one after the other or several at a time, and compares them."""

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from m3p.ablation.made_of import Facts, differences, facts_of_run, write_note
from m3p.ablation.report import Report, check_asked, load_evaluations, rows
from m3p.ablation.variants import Trial, Variant, parse_variation, refuse_folder, trials, variants
from m3p.errors import UserError
from m3p.recipe.load import dump_recipe, load_recipe
from m3p.recipe.recipe import Recipe
from m3p.stored_files import read_bounded
from m3p.terminal import say

Train = Callable[[Trial, Sequence[str]], int]
"""Trains the recipe with overrides, which make it this trial's, through the launcher; returns the exit code."""


def ablate(
    recipe: Path,
    overrides: Sequence[str],
    vary: Sequence[str],
    seeds: int,
    folder: Path,
    train: Train,
    jobs: int = 1,
    ds_config: Path | None = None,
) -> Report:
    """Train every combination of the varied fields with every seed, and return the comparison with the first combination.

    A run that is complete is not trained again, and one that was cut off goes on from its last checkpoint. So the same command,
    started again after a kill, does only what is left. `jobs` runs are trained at a time; where one fails, those that have
    started are waited for, and no other one starts. `ds_config` is the file of DeepSpeed's settings that `train` takes. Writes
    ablation.json and ablation.html into `folder`. Raises UserError for wrong fields, for runs of another recipe, other data,
    other code or another precision in the folder, and for a run that fails.
    """
    refuse_folder(overrides)
    found = variants([parse_variation(text) for text in vary])
    # With the varied fields, without which the recipe may be none.
    recipes = {variant.name: load_recipe(recipe, [*overrides, *variant.overrides]) for variant in found}
    base = next(iter(recipes.values()))
    check_asked(list(base.evaluation))
    if unscored := next((name for name, one in recipes.items() if not one.run.evaluate), None):
        raise UserError(
            f"{unscored}: run.evaluate = false: no run would be scored, and there would be nothing to compare; set it to true"
        )
    planned = trials(found, seeds, base.run.seed, folder)
    train_all(recipe, overrides, planned, train, jobs, ds_config)
    report = compare(found, planned, list(base.evaluation), str(recipe), list(overrides))
    report.save(folder)
    return report


@dataclass(frozen=True)
class _Planned:
    """A run as it is to be."""

    recipe: Recipe
    facts: Facts
    """What it is made of beside the recipe."""


def train_all(
    recipe: Path,
    overrides: Sequence[str],
    planned: Sequence[Trial],
    train: Train,
    jobs: int = 1,
    ds_config: Path | None = None,
) -> None:
    """Train the trials that are not complete, `jobs` at a time. Raises UserError; for a wrong recipe before the first starts."""
    recipes = {trial: load_recipe(recipe, [*overrides, *trial.overrides]) for trial in planned}
    every = {trial: _Planned(resolved, facts_of_run(resolved, ds_config)) for trial, resolved in recipes.items()}
    waiting = {trial: one for trial, one in every.items() if not _is_complete(trial, one)}
    _train(waiting, overrides, train, jobs)


def _train(planned: Mapping[Trial, _Planned], overrides: Sequence[str], train: Train, jobs: int) -> None:
    """Train every trial, `jobs` at a time, in their order. Raises UserError for the first that fails."""

    failed = threading.Event()

    def complete(trial: Trial) -> None:
        if failed.is_set():
            return
        try:
            write_note(trial.folder, planned[trial].facts)
            code = train(trial, [*overrides, *trial.overrides])
            if code or not _is_complete(trial, planned[trial]):
                raise UserError(
                    f"{trial.folder}: the run of {trial.variant.name} with seed {trial.seed} is not complete (exit code "
                    f"{code}); its messages stand above, or in its log. Starting the same command again goes on there"
                )
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(jobs) as threads:
        for _ in threads.map(complete, planned):
            pass


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


def _is_complete(trial: Trial, planned: _Planned) -> bool:
    """Say whether a run is done. Raises UserError where its folder holds a run of another recipe, other data or other code."""
    if not (trial.folder / "checkpoints").is_dir() and not (trial.folder / "status").is_file():
        return False  # nothing was trained there
    status, record = trial.folder / "status", trial.folder / "recipe.yaml"
    done = status.is_file() and read_bounded(status).strip() == b"done"
    # Both as loaded: a field that is newer than the run has its default. The training itself judges a run that it goes on with.
    if done and (not record.is_file() or dump_recipe(load_recipe(record)) != dump_recipe(planned.recipe)):
        raise UserError(
            f"{record}: this run was trained by another recipe than {trial.variant.name} with seed {trial.seed} is now; name "
            "another --folder, or move this one away"
        )
    if lines := differences(trial.folder, planned.facts):
        listed = "".join(f"\n  - {line}" for line in lines)
        raise UserError(
            f"{trial.folder}: this run is made of something else than {trial.variant.name} with seed {trial.seed} would be "
            f"now:{listed}\nName another --folder, move this one away, or put these back"
        )
    return done


def launcher(program: Callable[[], list[str]], recipe: Path, ds_config: str, threads: int | None) -> Train:
    """Return what trains through `program`, which gives the command that starts the ranks of one run.

    `threads`: None for one run at a time, which writes to the terminal. Else runs stand side by side: each rank computes with
    so many threads, unless OMP_NUM_THREADS says how many, and a run's messages go to a file beside its folder.
    """

    def train(trial: Trial, overrides: Sequence[str]) -> int:
        command = [*program(), "--recipe", str(recipe), "--deepspeed_config", ds_config, *overrides]
        if threads is None:
            return subprocess.run(command, check=False).returncode
        log = trial.folder.with_name(f"{trial.folder.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        say(f"{trial.variant.name}, seed {trial.seed}: trains; messages in {log}")
        with log.open("ab") as file:
            environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
            code = subprocess.run(command, check=False, stdout=file, stderr=file, env=environment).returncode
        say(f"{trial.variant.name}, seed {trial.seed}: {'done' if code == 0 else f'ended with exit code {code}'}")
        return code

    return train
