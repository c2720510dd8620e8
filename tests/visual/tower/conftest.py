"""Fixtures of the tests of towers."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.visual.tower.towers import REAL, REAL_FOLDER, make_tower_folder


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives the folder of the small tower of a name, made once, or a copy of a real tower's; read only."""

    def folder_of(name: str) -> Path:
        folder = tmp_path_factory.mktemp("tower") / name
        if name != REAL:
            return make_tower_folder(folder, name)
        if REAL_FOLDER not in os.environ:
            pytest.skip(f"{REAL_FOLDER} is not set: name the `transformers` folder of a trained vision model in it")
        return Path(shutil.copytree(os.environ[REAL_FOLDER], folder))

    return cache(folder_of)
