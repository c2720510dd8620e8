"""A few hundred mutations of each kind; `python -m tests.data.fuzz 10000` makes more."""

from pathlib import Path

import pytest

from tests.data.fuzz_files import KINDS


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_no_crash_no_hang_and_no_silent_change(tmp_path: Path, kind: str) -> None:
    number = 60 if kind == "answers of servers" else 300
    assert KINDS[kind](tmp_path / "here", number, 0) == number
