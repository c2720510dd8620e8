"""An index of the tiny run's pictures, and a folder of plain pictures with a run that sees pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3p.search.build import index_pictures
from tests.test_export import write_run
from tests.tiny import make_tiny

EVIL = '<img src=x onerror="document.title=1">'
"""A name and a caption that is a script wherever it is not escaped."""


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written run that sees pixels; read only. Its shards are beside it."""
    folder = tmp_path_factory.mktemp("seeing")
    make_tiny(folder, "patches")
    write_run(folder / "recipe.yaml", folder / "run", visual="patches")
    return folder / "run"


def draw(path: Path, number: int) -> Path:
    """Write a small picture that differs from those of other numbers."""
    pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A folder of ten pictures, in sub-folders too, with files that are none."""
    for number in range(9):
        draw(tmp_path / "album" / f"{'ab'[number % 2]}/p{number}.png", number)
    draw(tmp_path / "album" / f"{EVIL.replace('/', '')}.png", 9)
    (tmp_path / "album" / "notes.txt").write_text("no picture")
    return tmp_path / "album"


@pytest.fixture(scope="session")
def shelf(seeing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the tiny run's shards; read only."""
    folder = tmp_path_factory.mktemp("shelf") / "index"
    index_pictures(seeing, seeing.parent / "shards" / "train", folder)
    return folder
