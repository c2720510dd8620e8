"""Fixtures that many tests share."""

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import settings

from m3p.data.tokenizer import Tokenizer
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from tests.tiny import make_tiny
from tests.xlmr import make_xlmr_folder

# A shared machine is sometimes slow; how long one example takes says nothing about the code.
settings.register_profile("tests", deadline=None)
# ./run_tests.sh --quick takes this one: a few examples of each property.
settings.register_profile("quick", deadline=None, max_examples=10)
settings.load_profile("tests")

STARTS_PROGRAMS = {"program", "launcher", "slurm", "gpu", "slow"}
"""The marks of tests that may start programs; `./run_tests.sh --quick` leaves them out."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a tiny run; read only, so give each run its own run.folder."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_recipe(tiny: Path) -> Recipe:
    """The same, loaded."""
    return load_recipe(tiny)


@pytest.fixture(scope="session")
def tokenizer(tiny_recipe: Recipe) -> Tokenizer:
    """The tokenizer of the tiny run."""
    return Tokenizer(tiny_recipe.tokenizer_folder)


@pytest.fixture(scope="session")
def xlmr_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An XLM-R folder as published ones are: vocabulary by sentencepiece, random weights by `transformers`, no word head."""
    return make_xlmr_folder(tmp_path_factory.mktemp("xlmr"))


@pytest.fixture(scope="session")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a small object detector of a kind (tests/detectors.py), made once; read only."""

    @cache
    def made(kind: str) -> Path:
        from tests.detectors import make_detector  # late: it imports several models of transformers

        return make_detector(tmp_path_factory.mktemp(kind), kind)

    return made


@pytest.fixture(autouse=True)
def _programs_are_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that starts Python, a shell or a launcher without a mark that keeps it out of the quick tier."""
    if STARTS_PROGRAMS & {mark.name for mark in request.node.iter_markers()}:
        return
    start = subprocess.Popen.__init__

    def checked(self: Any, args: Any, *others: Any, **options: Any) -> None:
        words = [args] if isinstance(args, str | os.PathLike) else list(args)
        name = Path(str(words[0])).name
        if name.startswith(("python", "bash", "deepspeed", "torchrun", "m3p")):
            pytest.fail(f"the test starts {name}: mark it with @pytest.mark.program")
        start(self, args, *others, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", checked)


@pytest.fixture(autouse=True)
def _threads_are_left_as_they_were() -> Iterator[None]:
    """Fail a test after which torch computes with another number of threads: all later ones would, many times slower."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
        pytest.fail("the test changed torch's number of threads")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
