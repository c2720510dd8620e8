"""The site is built without a warning, and the field reference is that of today's schema."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT, blocks, commands

pytestmark = pytest.mark.program


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # the theme's own advertisement of its successor
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert (tmp_path / "site" / "glossary" / "index.html").is_file()


def test_the_field_reference_is_current() -> None:
    words = [sys.executable, "docs/recipe_fields.py", "--check"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_scripts_that_pages_name_are_bash() -> None:
    lines = [
        line for page in PAGES for block in blocks(page) if block.language == "bash" for line in commands(block.text)
    ]
    names = {word for line in lines for word in line.split() if word.endswith(".sh")}
    assert names > {"./quickstart.sh", "slurm/pretrain.sh"}
    for name in names:
        subprocess.run(["bash", "-n", str(ROOT / name)], check=True, timeout=20)
