"""benchmarks/host_before.py: what can be seen without a step of the earlier code."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.launch import ROOT


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("host_before")


@pytest.mark.long
def test_a_clone_without_the_commit_is_refused_in_one_line(
    program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(program, "COMMIT", "0" * 40)
    with pytest.raises(SystemExit, match=r"^no commit 0000000 to compare with: a clone with all its history is needed"):
        program.take_out_earlier_code(tmp_path)
    monkeypatch.setattr(program, "which", lambda name: None)
    with pytest.raises(SystemExit, match="git is not installed"):
        program.take_out_earlier_code(tmp_path)
    assert not list(tmp_path.iterdir())


def test_ratios_are_the_earlier_time_over_todays(program: Any) -> None:
    found = program.ratios({"before": [4.0, 6.0, 8.0], "one pass": [2.0, 1.0, 8.0]})
    assert found == {"one pass": 3.0, "one pass, least": 4.0, "one pass, pairs": 2.0}
