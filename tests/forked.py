"""Runs programs as forks of one process that holds their imports already: real processes, but no launcher.

A start by `deepspeed` imports torch and DeepSpeed four times for two ranks, some 20 s of processor time. Where the launcher
is not what a test is about, its ranks come from here.
"""

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.rank_imports"])


def numbered(environment: Mapping[str, str], ranks: int) -> list[dict[str, str]]:
    """Return the variables of each rank of one node, as a launcher sets them; `environment` holds MASTER_PORT."""
    shared = {**environment, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def run_forks(
    program: Path,
    arguments: Sequence[Sequence[str]],
    environments: Sequence[Mapping[str, str]],
    outputs: Sequence[tuple[Path, Path]],
    seconds: float = 300,
) -> list[int]:
    """Run a Python program in several processes, to their end: -> the exit code of each, negative for a signal.

    Each process has its own arguments, environment, and files to which its standard output and error are appended. When one
    fails, the others get SIGTERM, as from DeepSpeed's launcher. Raises TimeoutError, and ends them, after `seconds`.
    """
    ranks = list[BaseProcess]()
    for words, own, files in zip(arguments, environments, outputs, strict=True):
        ranks.append(_CONTEXT.Process(target=_become, args=(program, words, own, files)))
        ranks[-1].start()
    end, told = time.monotonic() + seconds, False
    while any(one.exitcode is None for one in ranks):
        if time.monotonic() > end:
            for one in ranks:
                one.kill()
            raise TimeoutError(f"{program.name} has not ended after {seconds} s")
        if not told and any(one.exitcode for one in ranks):
            told = True
            for one in ranks:
                one.terminate()
        time.sleep(0.02)
    return [one.exitcode or 0 for one in ranks]


def _become(program: Path, words: Sequence[str], environment: Mapping[str, str], files: tuple[Path, Path]) -> None:
    """Become a fresh `python PROGRAM WORDS...` as far as a program can tell."""
    for path, descriptor in zip(files, (1, 2), strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(program), *words]
    sys.path.insert(0, str(program.parent))
    runpy.run_path(str(program), run_name="__main__")
