"""The training program: `deepspeed trainer/run.py --recipe FILE|NAME --deepspeed_config FILE|NAME [section.key=value ...]`.

Under Slurm `srun python trainer/run.py ...` does the same, one task a rank; without a launcher it is one rank. `m3p train`
starts the ranks of one machine.
"""

import argparse
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import NoReturn

# DeepSpeed calls functions that torch has renamed: a warning a call, nothing a user can do.
warnings.filterwarnings("ignore", category=FutureWarning)
# A wish to stop that comes while modules are imported and ranks meet waits until `StopSignal` takes it.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})

from m3p import distributed  # noqa: E402
from m3p.errors import OneRankError, UserError, no_room, out_of_files, say_thread_failed  # noqa: E402
from m3p.terminal import warn  # noqa: E402
from m3p.unicode_text import check_words  # noqa: E402

UNTIL_SAID = 30.0
"""Seconds in which the first rank of a node says what is wrong with a recipe, however busy the node is."""


def main(arguments: Sequence[str]) -> None:
    """Parse, meet the other ranks, train, evaluate. Raises UserError."""
    check_words(arguments)
    options = _parse(arguments)
    from m3p.recipe.load import load_recipe
    from m3p.shipped import find_ds_config, find_recipe

    recipe = load_recipe(find_recipe(options.recipe), options.overrides)
    ds_config = find_ds_config(options.deepspeed_config)
    evaluates = recipe.run.evaluate and bool(recipe.evaluation)
    if evaluates:
        from m3p.retrieval.pictures import check_evaluations

        check_evaluations(recipe)
    ranks = distributed.start(recipe.run.timeout_seconds)

    from m3p.training.stop import write_done
    from m3p.training.train import train

    complete = train(recipe, ds_config, ranks)
    if complete and evaluates:
        from m3p.checkpoints.selection import chosen
        from m3p.retrieval.evaluate import evaluate_run

        evaluate_run(chosen(recipe.run.folder))
    distributed.finish()
    if complete and ranks.rank == 0:
        # Not before: a run that is done is never started again, and a lost evaluation would stay lost.
        write_done(recipe.run.folder)


def run(arguments: Sequence[str]) -> NoReturn:
    """Train, and leave the process: code 0, 2 for a mistake that the user can mend, 1 for a defect of the program."""
    threading.excepthook = say_thread_failed
    rank, local_rank = _numbers(os.environ)  # now: DeepSpeed is given another LOCAL_RANK
    prefix = "" if rank == "0" else f"rank {rank}: "
    try:
        main(arguments)
    except UserError as error:
        # All ranks of a node find the same mistake, and one of them says it; but for what only one rank can see.
        if local_rank == "0" or isinstance(error, OneRankError):
            warn(f"{prefix}error: {error}")
        elif not distributed.has_joined():
            # The one that says it may still be importing, and launchers end all ranks as soon as one has failed.
            time.sleep(UNTIL_SAID)
        distributed.leave(2)
    except Exception as error:
        full = no_room(error) or out_of_files(error) if isinstance(error, OSError) else None
        if full is not None:  # the rank that wrote is the one that knows
            warn(f"{prefix}error: {full}; starting again goes on from the last checkpoint")
            distributed.leave(2)
        traceback.print_exc()
        distributed.leave(1)
    distributed.leave(0)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "trainer/run.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help="a recipe file, or the name of one that `m3p recipes` lists")
    parser.add_argument(
        "--deepspeed_config", required=True, help="a file of DeepSpeed's settings, or a name: zero0 to zero3 ..."
    )
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, help="given by some launchers; LOCAL_RANK is used instead"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="recipe fields to change")
    return parser.parse_intermixed_args(list(arguments))


def _numbers(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return this process' number among all ranks and among those of its node, as the launcher or srun gave them."""
    names = ("RANK", "LOCAL_RANK") if "RANK" in environment else ("SLURM_PROCID", "SLURM_LOCALID")
    rank, local_rank = (environment.get(name, "0") for name in names)
    return rank, local_rank


if __name__ == "__main__":
    run(sys.argv[1:])
