import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.launch import ROOT


@pytest.mark.program
def test_every_part_runs_at_a_tiny_size_on_a_cpu(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--cpu", str(tmp_path / "gpu")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    summary = (tmp_path / "gpu" / "summary.txt").read_text()
    assert "0 part(s) failed" in summary
    assert "median of 2 steps: tokens_per_second" in summary
    with tarfile.open(tmp_path / "gpu" / "results.tar.gz") as archive:
        names = set(archive.getnames())
    wanted = {"step.json", "head.json", "train.metrics.jsonl", "train.json", "tests.log", "demo.log"}
    assert {
        f"./{name}" for name in wanted | {"profile/trace.json.gz", "profile/table.txt", "train-profile/table.txt"}
    } <= names
