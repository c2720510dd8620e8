"""Fixtures that many tests share."""

from pathlib import Path

import pytest

from tests.tiny import make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a tiny run; read only, so give each run its own run.folder."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))
