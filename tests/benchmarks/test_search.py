"""benchmarks/search.py at a tiny size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import ROOT


@pytest.mark.program
def test_it_measures_an_index_against_flat_search(tmp_path: Path) -> None:
    words = [
        sys.executable,
        str(ROOT / "benchmarks/search.py"),
        "--pictures",
        "60000",
        "--width",
        "16",
        "--queries",
        "20",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "trainer"), "OMP_NUM_THREADS": "1"}
    words += ["--folder", str(tmp_path), "--json", str(tmp_path / "found.json")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    ours, flat = found["rows"]
    assert ours["search"] == "m3p, IVF-PQ"
    assert ours["recall_at_10"] >= 0.95
    assert flat["recall_at_10"] == 1
    assert found["building"]["peak_mib"] > 0
    assert "recall@10" in done.stdout
