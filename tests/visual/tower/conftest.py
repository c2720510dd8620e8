"""Fixtures of the tests of towers."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.visual.tower.towers import make_tower_folder


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives the folder of the small tower of a name, made once; read only."""
    return cache(lambda name: make_tower_folder(tmp_path_factory.mktemp("tower") / name, name))
