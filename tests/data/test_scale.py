"""A source of 100,000 shards and 1e9 samples: start-up, memory, and the cost of a far position, in a process of its own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from m3p.data.shards.index_file import index_bytes
from m3p.data.shards.index_folder import PROGRESS, index_folder
from m3p.data.shards.manifest import Manifest
from m3p.prepare.shards import ShardWriter
from tests.launch import ROOT

SHARDS, SAMPLES = 100_000, 10_000

MEASURE = """
import json, sys, time
from pathlib import Path
from m3p.data.source import Source, SourceConfig
began = time.process_time()
source = Source(Path(sys.argv[1]), SourceConfig(path=sys.argv[1]), (0, "text", 0), 4, None)
started = time.process_time() - began
def seconds(first):
    began = time.process_time()
    for position in range(first, first + 300_000_000, 1_000_000):
        source.order.place(position)
    return time.process_time() - began
near, far = min(seconds(0) for _ in range(2)), min(seconds(10**12) for _ in range(2))
# The largest so far; what getrusage says would hold the memory of the process that forked this one.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
memory = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"start": started, "near": near, "far": far, "memory": memory, "samples": source.manifest.samples}))
"""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """The files are there with their sizes, but hold nothing: what is measured does not read them."""
    shards = []
    for number in range(SHARDS):
        name = f"shard-{number:06d}"
        for suffix, size in ((".tar", 512 * SAMPLES), (".idx", index_bytes(SAMPLES, 1))):
            descriptor = os.open(tmp_path / f"{name}{suffix}", os.O_CREAT | os.O_WRONLY)
            os.ftruncate(descriptor, size)
            os.close(descriptor)
        shards.append(
            {"name": f"{name}.tar", "samples": SAMPLES, "bytes": 512 * SAMPLES, "fingerprint": f"{number:032x}"}
        )
    manifest = {"format_version": 1, "kind": "text", "language": "en", "samples": SHARDS * SAMPLES, "shards": shards}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


@pytest.mark.program
def test_a_loader_of_100_000_shards_and_1e9_samples_starts_fast_and_stays_small(large: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    print(found)
    assert found["samples"] == 10**9
    assert found["start"] < 5, "seconds of processor time"
    assert found["memory"] < 300e6, "bytes"
    assert found["far"] < 2 * found["near"] + 0.05


def texts(folder: Path, shards: int) -> Manifest:
    with ShardWriter(folder, "text", 3, "en") as writer:
        for number in range(3 * shards):
            writer.write({"txt": f"text {number}".encode()})
    return writer.manifest


@pytest.mark.long
def test_many_tars_are_indexed_as_few_are(tmp_path: Path) -> None:
    wanted = texts(tmp_path, 20)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.idx")}
    for path in tmp_path.glob("*.idx"):
        path.unlink()
    assert index_folder(tmp_path, "text", "en") == wanted
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.idx")} == before
    assert not (tmp_path / PROGRESS).exists()


@pytest.mark.program
def test_an_interrupted_index_goes_on_where_it_was(tmp_path: Path) -> None:
    wanted = texts(tmp_path, 12)
    program = """
import os, sys
from pathlib import Path
from m3p.data.shards import index_folder as module
whole, seen = module._each, 0
def cut(*arguments):
    for number, one in enumerate(whole(*arguments)):
        if number == 5:
            os.kill(os.getpid(), 9)
        yield one
module._each = cut
module.index_folder(Path(sys.argv[1]), "text", "en")
"""
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False).returncode == -9
    end = time.monotonic() + 10
    while left := [one.pid for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in (one.info["cmdline"] or [])]:
        assert time.monotonic() < end, f"its processes live on: {left}"
        time.sleep(0.05)
    with (tmp_path / PROGRESS).open("a") as file:
        file.write('["shard-0000')
    noted = (tmp_path / PROGRESS).read_text().splitlines()
    assert len(noted) == 6
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.idx")}
    assert index_folder(tmp_path, "text", "en") == wanted
    kept = [name for name, time in times.items() if (tmp_path / name).stat().st_mtime_ns == time]
    assert len(kept) >= 5


def test_a_tar_that_changed_in_between_is_indexed_again(tmp_path: Path) -> None:
    texts(tmp_path, 4)
    (tmp_path / PROGRESS).write_text(
        json.dumps(
            ["shard-000000.tar 1 1", "text", "en", {"samples": 999, "bytes": 1, "fingerprint": "", "captions": {}}]
        )
        + "\n"
    )
    assert index_folder(tmp_path, "text", "en").samples == 12
