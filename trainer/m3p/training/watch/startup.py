"""What a run says of itself before its first step: which parts are in use and why, and the files that record it."""

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from rich.table import Table
from torch.utils.tensorboard.writer import SummaryWriter

from m3p.atomic import write_text
from m3p.console import PlainConsole
from m3p.data.order.plan import Plan
from m3p.distributed import Ranks
from m3p.model.flops import FORMULA
from m3p.objectives.objective import Objective
from m3p.recipe.load import dump_recipe
from m3p.recipe.recipe import Recipe
from m3p.training.build_objectives import held_back
from m3p.training.engine import Engine

PACKAGES = ("torch", "deepspeed", "transformers", "numpy", "sentencepiece", "simplemma", "simplejpeg", "webdataset")


def announce(
    recipe: Recipe,
    engine: Engine,
    ranks: Ranks,
    plan: Plan,
    objectives: dict[str, Objective],
    first_step: int,
    start: Mapping[str, str],
) -> None:
    """Print the parts in use, and write recipe.yaml and environment.json into the run folder. Rank 0 only.

    `start`: with what weights the run starts, in words, by name.
    """
    if ranks.rank != 0:
        return
    parts = {**start, **_parts(engine, ranks, plan)}
    table = Table(title=f"{recipe.run.folder}: step {first_step} of {recipe.run.steps}", show_header=False)
    for name, what in {**parts, **_streams(objectives)}.items():
        table.add_row(name, what)
    PlainConsole().print(table)
    folder = recipe.run.folder
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        writer.add_text("recipe", f"```yaml\n{dump_recipe(recipe)}```", first_step)
        writer.add_text("parts", "\n".join(f"- **{name}**: {what}" for name, what in parts.items()), first_step)
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    environment = {
        "parts": parts,
        "ranks": ranks.world_size,
        "launcher": ranks.launcher,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "git_commit": git_commit(),
    }
    write_text(folder / "environment.json", json.dumps(environment, indent=1) + "\n")


def git_commit() -> str:
    """Return the commit of the program's checkout, with "+" where files differ from it; "unknown" outside git."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _parts(engine: Engine, ranks: Ranks, plan: Plan) -> dict[str, str]:
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "CPU"
    return {
        "ranks": f"{ranks.world_size} x {device}, started by {ranks.launcher}",
        **engine.describe(),
        "MFU": FORMULA,
        "turns of a step": ", ".join(turn.objective for turn in plan.turns(0)),
    }


def _streams(objectives: dict[str, Objective]) -> dict[str, str]:
    lines = {}
    for name, objective in objectives.items():
        samples = sum(source.manifest.samples for source in objective.mix.sources)
        tasks = ", ".join(f"{task} x {weight:g}" for task, weight in objective.tasks.items())
        lines[name] = (
            f"{objective.config.batch_size} samples a turn of {samples:,} in {len(objective.mix.sources)} source(s); {tasks}"
            + "".join(f"; {line}" for line in objective.notes())
        )
    if late := held_back(objectives.values()):
        lines["shards"] = late
    return lines
