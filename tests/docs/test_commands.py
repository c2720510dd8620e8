"""Runs the commands and examples of README and docs in a reader's folder (tests/docs/conftest.py)."""

import contextlib
import io
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from m3p.cli import main as command_line
from tests.docs.blocks import PAGES, ROOT, Block, blocks, commands
from tests.docs.conftest import run

pytestmark = pytest.mark.program


def is_run(block: Block) -> bool:
    """Say whether a block is run in the reader's folder."""
    return block.words[:1] == ["run"] or (block.language == "python" and not block.words)


RUN = {page: [block for block in blocks(page) if is_run(block)] for page in PAGES}
CONSOLE = [block for page in PAGES for block in blocks(page) if block.language == "console"]
STARTS_RANKS = ("m3p train", "m3p ablate")
"""Commands that replace their process; the others run in the tests' own, which saves seconds each."""


@pytest.fixture(autouse=True)
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_from_top_to_bottom(
    page: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(workspace, tmp_path / "reader", symlinks=True)
    monkeypatch.chdir(folder)
    for block in RUN[page]:
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as said:
                exec(compile(block.text, block.name, "exec"), {"__name__": "__main__"})
            assert said.getvalue(), f"{block.name} prints nothing"
            continue
        for command in commands(block.text):
            _run_command(block, command, folder)


def _run_command(block: Block, command: str, folder: Path) -> None:
    if command.startswith(STARTS_RANKS):
        run(" ".join([command, *block.words[2:]]), folder)
    elif command.startswith("m3p "):
        code, said = called(command)
        assert code == 0, f"{block.name}: {command}\n{said}"
    else:
        run(command, folder)


@pytest.mark.parametrize("block", CONSOLE, ids=lambda block: block.name)
def test_what_a_command_prints_is_what_stands_there(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command, _, expected = block.text.partition("\n")
    _, said = called(command.removeprefix("$ "))
    assert said.strip() == expected.strip()


def called(command: str) -> tuple[int, str]:
    """Call `m3p ...` in this process: -> exit code, and what it printed on both outputs."""
    arguments = shlex.split(command)
    assert arguments[0] == "m3p"
    before = sys.argv
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        try:
            sys.argv = arguments
            command_line.main()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        finally:
            sys.argv = before
    return code, said.getvalue()


def test_a_command_that_fails_fails_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = called("m3p show nowhere.yaml")
    assert code == 2
    assert "error: " in said
    with pytest.raises(AssertionError, match="false"):
        run("false", tmp_path)
    assert os.environ["DS_ACCELERATOR"] == "cpu"
