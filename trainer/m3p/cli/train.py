"""The commands that start runs, and list what comes with the program."""

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from m3p.cli.arguments import DsConfigOption, Overrides, Ranks
from m3p.errors import UserError
from m3p.paths import masked
from m3p.shipped import SLURM, find_ds_config, find_recipe, recipes
from m3p.terminal import say

MAX_CPU_RANKS = 2
"""Ranks of a machine without a GPU: more than two gain little, since every rank already uses several cores."""


def train_command(
    recipe: Annotated[str, typer.Option(help="A recipe file, or a name that `m3p recipes` lists.")],
    deepspeed_config: DsConfigOption = "zero1",
    overrides: Overrides = None,
    ranks: Ranks = 0,
) -> None:
    """Train a recipe on this machine; the same command goes on where a run stopped.

    On several machines: slurm/pretrain.sh under Slurm, or `deepspeed` with a host file and trainer/run.py.
    """
    _check_secrets(overrides or [])
    command = train_program(ranks or default_ranks())
    command += ["--recipe", str(find_recipe(recipe)), "--deepspeed_config", str(find_ds_config(deepspeed_config))]
    # In this process' place, so that signals reach the launcher, which hands them to the ranks.
    sys.stdout.flush()
    os.execv(command[0], [*command, *(overrides or [])])


def _check_secrets(overrides: Sequence[str]) -> None:
    """Raise UserError for a password: the launcher prints its command, and the system shows it to all users."""
    for override in overrides:
        if masked(override) != override:
            raise UserError(
                f"{masked(override)}: a password of the command line is printed by the launcher and seen by all users; write "
                "${NAME} in its place (in single quotes) and set the environment variable NAME, or write it into the recipe"
            )


def recipes_command() -> None:
    """List the recipes that come with the program; `m3p show NAME` prints one."""
    named = recipes()
    width = max(map(len, named))
    for name, line in named.items():
        say(f"{name:{width}}  {line}")


def slurm_command(
    folder: Annotated[Path, typer.Argument(help="Where the folder slurm/ is written.")] = Path(),
) -> None:
    """Write the batch scripts for Slurm into FOLDER/slurm, for an installation without a checkout."""
    target = folder / "slurm"
    if target.exists():
        raise UserError(f"{target} exists already; name another folder, or move it away")
    shutil.copytree(SLURM, target)
    say(f"{target}: submit from {folder.resolve()} with M3P_PYTHON={sys.executable} sbatch slurm/pretrain.sh ...")


def train_program(ranks: int) -> list[str]:
    """Return the command that starts that many ranks of training on this machine, through DeepSpeed's launcher."""
    # The working folder may hold files of strangers, such as random.py: no process of the run imports from it.
    python = ["/usr/bin/env", "PYTHONSAFEPATH=1", sys.executable]
    launcher = [*python, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)]
    # A port of its own, so that several runs of one machine do not meet each other.
    return [*launcher, "--master_port", str(_free_port()), "--module", "m3p.training.main"]


def default_ranks() -> int:
    """Return how many ranks this machine gets: one a GPU; without one, one a core and at most `MAX_CPU_RANKS`."""
    import torch  # takes seconds, and `m3p --help` should not

    return torch.cuda.device_count() or min(MAX_CPU_RANKS, len(os.sched_getaffinity(0)))


def threads_of_job(jobs: int, ranks: int) -> int:
    """Return how many threads a rank gets where `jobs` runs of `ranks` share the processors. Raises UserError on a GPU."""
    import torch

    if torch.cuda.is_available():
        raise UserError(
            f"--jobs {jobs}: runs would meet on the same GPUs; leave it out, and give each run all of them with --ranks"
        )
    return max(1, len(os.sched_getaffinity(0)) // (jobs * ranks))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
