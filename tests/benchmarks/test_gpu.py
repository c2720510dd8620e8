import json
import os
import socketserver
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from m3p.forecast.forecast import find_kind
from tests.forked import run_forks
from tests.launch import ROOT

STAND_IN = f"""#!{sys.executable} -SE
import json, os, socket, stat, sys, tempfile
words, here = sys.argv[1:], os.path.dirname(os.path.abspath(__file__))
if words[0] == "-c":  # a word or two of Python
    os.execv({sys.executable!r}, [{sys.executable!r}, *words])
own = tempfile.mkdtemp(dir=here)
files = []
for n in (1, 2):
    is_file = stat.S_ISREG(os.fstat(n).st_mode)
    files.append(os.readlink(f"/proc/self/fd/{{n}}") if is_file else os.path.join(own, str(n)))
with socket.socket(socket.AF_UNIX) as line:
    line.connect(os.path.join(here, "line"))
    line.sendall(json.dumps([words, dict(os.environ), *files]).encode())
    line.shutdown(socket.SHUT_WR)
    code = int(line.recv(16))
for n in (1, 2):
    if os.path.exists(os.path.join(own, str(n))):
        os.write(n, open(os.path.join(own, str(n)), "rb").read())
sys.exit(code)
"""
"""A `python` that starts in milliseconds: what it is told to run is run by a fork of a process that holds all imports."""


class Run(socketserver.StreamRequestHandler):
    """Runs one program for the stand-in, and tells it the exit code."""

    def handle(self) -> None:
        words, environment, *files = json.loads(self.rfile.read())
        program = find_program(words)
        (code,) = run_forks(program, [words], [environment], [(Path(files[0]), Path(files[1]))])
        self.wfile.write(str(code if code >= 0 else 128 - code).encode())


def find_program(words: list[str]) -> Path:
    """Take the program out of the words behind `python`, and return its file."""
    if words[0] != "-m":
        return ROOT / words.pop(0)
    module = words[1]
    del words[:2]
    return {"m3p": ROOT / "trainer" / "m3p", "pytest": Path(pytest.__file__).parent}[module] / "__main__.py"


@pytest.fixture
def python() -> Iterator[Path]:
    """The path of the stand-in."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        stand_in = Path(folder) / "python"
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)
        with socketserver.ThreadingUnixStreamServer(str(Path(folder) / "line"), Run) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield stand_in
            server.shutdown()


@pytest.mark.program
@pytest.mark.long
def test_every_part_runs_at_a_tiny_size_on_a_cpu(tmp_path: Path, python: Path) -> None:
    environment = {**os.environ, "PYTHON": str(python), "PYTHONPATH": "", "LOCAL_SIZE": "2"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--cpu", str(tmp_path / "gpu")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    summary = (tmp_path / "gpu" / "summary.txt").read_text()
    assert "0 part(s) failed" in summary
    assert "median of 2 steps: tokens_per_second" in summary
    with tarfile.open(tmp_path / "gpu" / "results.tar.gz") as archive:
        names = set(archive.getnames())
        step = json.load(archive.extractfile("./step.json") or pytest.fail("no step.json"))
    assert all(row["teraflops"] > 0 for row in step["rows"])
    assert "real slot" in step["mfu_formula"]
    wanted = {
        "step.json",
        "head.json",
        "train.metrics.jsonl",
        "train.json",
        "tests.log",
        "demo.log",
        "train-joined.json",
    }
    assert {
        f"./{name}" for name in wanted | {"profile/trace.json.gz", "profile/table.txt", "train-profile/table.txt"}
    } <= names


NO_PYTHON = """#!/bin/bash
case "$*" in
  *get_device_name*) echo "NVIDIA {name}" ;;
  *total_memory*) echo {memory} ;;
  *"import flash_attn"*) exit 1 ;;
  *) echo "$*" >>"{log}" ;;
esac
"""


def start(tmp_path: Path, *words: str, name: str = "H200", memory: int = 139) -> subprocess.CompletedProcess[str]:
    """Run gpu.sh on a GPU that is made up; what it would have Python do stands in `tmp_path`/log, and nothing is done."""
    stand_in = tmp_path / "python"
    stand_in.write_text(NO_PYTHON.format(name=name, memory=memory, log=tmp_path / "log"))
    stand_in.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key not in ("BATCH", "OUT", "WHEELS")}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *words]
    environment["PYTHON"] = str(stand_in)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.program
def test_what_it_does_not_know_is_refused(tmp_path: Path) -> None:
    done = start(tmp_path, "--help")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: bash benchmarks/gpu.sh")
    assert not (tmp_path / "log").exists()
    done = start(tmp_path, "--only", "plan steps", str(tmp_path / "gpu"))
    assert done.returncode == 1
    assert "1 part(s) failed: steps (no part of this name here)" in done.stdout
    (tmp_path / "file").touch()
    done = start(tmp_path, str(tmp_path / "file"))
    assert done.returncode == 1
    assert "part(s)" not in done.stdout


@pytest.mark.program
@pytest.mark.parametrize(
    ("name", "memory", "batch", "peers"),
    [("H200", 139, 512, "all"), ("H100 80GB HBM3", 79, 512, "masked"), ("L40S", 44, 256, "masked")],
)
def test_a_smaller_gpu_gets_what_it_holds(tmp_path: Path, name: str, memory: int, batch: int, peers: str) -> None:
    start(tmp_path, "--only", "train step step-128 plan", str(tmp_path / "gpu"), name=name, memory=memory)
    lines = (tmp_path / "log").read_text().splitlines()
    (train,) = [line for line in lines if line.startswith("trainer/run.py")]
    assert f"objectives.image_caption.micro_batch={batch}" in train
    step, few = [line for line in lines if line.startswith("benchmarks/step.py")]
    assert f"--samples {batch}" in step
    assert "--peers masked" in step
    assert few.endswith(f"--samples 128 --peers {peers}")
    (plan,) = [line for line in lines if line.startswith("-m m3p plan")]
    assert find_kind(plan.partition("--kind ")[2]) is not None
