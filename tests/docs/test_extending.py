"""The changes of docs/extending.md: each applies to a copy of the tree, touches what its table says, and runs."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, blocks, prose

PAGE = ROOT / "docs" / "extending.md"
BLOCKS = list(blocks(PAGE))
CHANGES = {block.words[1]: block for block in BLOCKS if block.words[:1] == ["adds"]}
COPIED = ("trainer", "ds_configs", "slurm")


def counted(block: Block) -> tuple[int, int]:
    """Return how many files a change makes, and how many lines of other files it adds or takes away (blank ones left out)."""
    new = lines = 0
    inside = False
    for line in block.text.splitlines():
        if line.startswith("--- "):
            inside = line == "--- /dev/null"
            new += inside
        elif not inside and re.match(r"^[+-](?!\+\+ |-- )\s*\S", line):
            lines += 1
    return new, lines


def test_the_table_counts_what_the_changes_touch() -> None:
    rows = [line for line in prose(PAGE) if line.startswith("| [")]
    said = {row.split("|")[1].strip(): tuple(int(cell) for cell in row.split("|")[2:4]) for row in rows}
    found = {}
    for name, block in CHANGES.items():
        (row,) = [row for row in said if row.partition("](#")[0].endswith(f" {name.replace('_', ' ')}")]
        found[row] = counted(block)
    assert said == found


def test_every_change_is_run() -> None:
    run = {block.words[1] for block in BLOCKS if block.words[:1] == ["in"]}
    assert set(CHANGES) == run


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives the copy of the tree with one of the changes in it."""
    made: dict[str, Path] = {}

    def change(name: str) -> Path:
        if name not in made:
            made[name] = folder = tmp_path_factory.mktemp(name)
            for part in COPIED:
                shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            done = subprocess.run(
                ["git", "apply", "--whitespace=error", "-"], cwd=folder, input=CHANGES[name].text, text=True,
                capture_output=True, check=False, env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
            )  # fmt: skip
            assert done.returncode == 0, f"{CHANGES[name].name} no longer fits: {done.stderr}"
        return made[name]

    return change


@pytest.mark.program
@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.words[:1] == ["in"]], ids=lambda block: block.name
)
def test_what_a_change_adds_works(block: Block, changed: Callable[[str], Path]) -> None:
    folder = changed(block.words[1])
    environment = {**os.environ, "PYTHONPATH": str(folder / "trainer"), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    words = [sys.executable, "-"] if block.language == "python" else ["bash", "-euo", "pipefail"]
    done = subprocess.run(
        words, cwd=folder, input=block.text, text=True, capture_output=True, env=environment, timeout=200, check=False
    )
    assert done.returncode == 0, f"{block.name}: {done.stdout[-2000:]}\n{done.stderr[-3000:]}"
