"""Fixtures that many tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import settings

from m3p.data.tokenizer import Tokenizer
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from tests.tiny import make_tiny

# A shared machine is sometimes slow; how long one example takes says nothing about the code.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

SHARED_ENCODER = Path(__file__).parents[1].parent / "shared" / "data" / "encoder"


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
def shared_encoder() -> Path:
    """A real encoder with its vocabulary, beside the repository on some machines."""
    if not (SHARED_ENCODER / "config.json").is_file():
        pytest.skip(f"no real encoder at {SHARED_ENCODER}")
    return SHARED_ENCODER


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
