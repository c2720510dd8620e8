"""Host time of a step now and at the commit from which it was to be halved, by the measurement of `host.py`.

    python benchmarks/host_before.py [--samples 16] [--steps 60] [--json FILE]

The code of the commit is taken out of this clone's own history into a temporary folder and runs in a process of its own
(`host_before_step.py`); today's code runs in this one. Both get the same weights and the very same micro-batches, and must give
the same losses. Then each takes one step in turn: the earlier code turn by turn, which is all that it can do, today's code turn
by turn and in one pass. Times are processor time of one thread, with Python's garbage collector off, as it is while a run
trains. It compares on a CPU; where there is a GPU, set DS_ACCELERATOR=cpu.

Ratios `WAY`, `WAY, least` and `WAY, pairs` are the earlier code's time over today's: of the medians, of the least times, and the
median over the steps that were taken one after the other. More is better.
"""

import argparse
import gc
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import IO

import torch
from host import CLASSES, FEATURES, WORDS, build, passes, take_step, turn_of_pairs, turn_of_text
from machine import machine
from rich.console import Console
from rich.table import Table

from m3p import distributed
from m3p.batch import FIELDS, Batch

COMMIT = "3ca9cc17f7c457aa8b634adba63cc1edc7952aee"
"""The last one before steps were made to cost the host less."""
BEFORE = "before"
HERE = Path(__file__).parent


def main() -> None:
    """Start both, check that they compute the same, time and print."""
    arguments = _parse()
    samples: int = arguments.samples
    batches = [turn_of_text(samples), turn_of_pairs(samples), turn_of_pairs(samples)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        take_out_earlier_code(folder / "tree")
        torch.save({"setting": setting(arguments), "batches": [*map(content, batches)]}, folder / "input.pt")
        with Earlier(folder) as earlier:
            engine = build(arguments)
            torch.set_num_threads(1)  # here, since a rank takes the cores that are its own when it starts
            calls = {BEFORE: earlier.step}
            for way, plan in passes(samples).items():
                calls[way] = _timed(lambda plan=plan: sum(take_step(engine, plan, batches).tasks.values()))  # type: ignore[misc]
            report(measure(calls, arguments.steps), arguments)
    distributed.finish()
    distributed.leave(0)


def take_out_earlier_code(folder: Path) -> None:
    """Write the trainer of `COMMIT` into `folder`. Leaves with one line where this clone's history does not have it."""
    command = ["git", "-C", str(HERE.parent), "archive", "--format=tar", COMMIT, "trainer"]
    if which("git") is None:
        raise SystemExit("git is not installed: the code to compare with is in the history")
    found = subprocess.run(command, capture_output=True, check=False)
    if found.returncode:
        why = " ".join(found.stderr.decode(errors="replace").split())
        raise SystemExit(
            f"no commit {COMMIT[:7]} to compare with: a clone with all its history is needed ({why[:300]})"
        )
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")


def setting(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the sizes and DeepSpeed settings of `host.build`, which the earlier code takes too."""
    heads = max(1, arguments.width // 64)
    shape = {
        "layers": arguments.layers,
        "width": arguments.width,
        "heads": heads,
        "feed_forward": arguments.feed_forward,
    }
    return {
        "words": WORDS,
        "shape": {**shape, "positions": 514},
        "visual": {"kind": "regions", "feature_size": FEATURES, "classes": CLASSES},
        "deepspeed": {"bf16": {"enabled": False}, "zero_optimization": {"stage": 1}},
    }


def content(batch: Batch) -> dict[str, object]:
    """Return a micro-batch as tensors and numbers by name, which any state of the code can read."""
    return {name: getattr(batch, name) for name in FIELDS}


class Earlier:
    """The process that runs the earlier code on what lies in `folder`; it takes a step for each line that it is sent."""

    def __init__(self, folder: Path) -> None:
        self._errors = folder / "errors.log"
        command = [sys.executable, str(HERE / "host_before_step.py"), str(folder / "tree"), str(folder / "input.pt")]
        environment = {**os.environ, "PYTHONPATH": str(folder / "tree"), "DS_ACCELERATOR": "cpu"}
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def __enter__(self) -> "Earlier":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def step(self) -> tuple[float, float]:
        """Return processor seconds and loss of a step."""
        sent, answers = self._process.stdin, self._process.stdout
        assert sent is not None
        assert answers is not None
        try:
            print(file=sent, flush=True)
            seconds, loss = json.loads(_line(answers))
        except (BrokenPipeError, EOFError):
            raise SystemExit(f"the earlier code ended: {self._errors.read_text()[-2000:]}") from None
        return float(seconds), float(loss)


def _line(answers: IO[str]) -> str:
    if not (line := answers.readline()):
        raise EOFError
    return line


def _timed(step: Callable[[], float]) -> Callable[[], tuple[float, float]]:
    """Return a call that takes a step and returns its processor seconds and its loss."""

    def call() -> tuple[float, float]:
        began = time.process_time()
        loss = step()
        return time.process_time() - began, loss

    return call


def measure(calls: dict[str, Callable[[], tuple[float, float]]], steps: int) -> dict[str, list[float]]:
    """Take one step of each in turn, `steps` times over, after two that do not count: -> seconds by name."""
    for _ in range(2):
        losses = {name: call()[1] for name, call in calls.items()}
    assert all(abs(loss - losses[BEFORE]) < 1e-5 * losses[BEFORE] for loss in losses.values()), losses
    gc.freeze()
    gc.disable()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(steps):
        for name, call in calls.items():
            seconds[name].append(call()[0])
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the earlier code's time over that of each of today's ways: of medians, of least times, and of pairs."""
    before, found = seconds[BEFORE], dict[str, float]()
    for name, times in seconds.items():
        if name != BEFORE:
            pairs = [theirs / mine for theirs, mine in zip(before, times, strict=True)]
            found[name] = statistics.median(before) / statistics.median(times)
            found[f"{name}, least"] = min(before) / min(times)
            found[f"{name}, pairs"] = statistics.median(pairs)
    return found


def report(seconds: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    """Print the times, and write them where that is asked for."""
    title = f"{arguments.samples} samples a turn, {arguments.layers} layers x {arguments.width}, before: {COMMIT[:7]}"
    table = Table("a step's three turns", "median, ms", "least, ms", title=title)
    rows = []
    for name, times in seconds.items():
        median, least = statistics.median(times), min(times)
        table.add_row(name, f"{1000 * median:.1f}", f"{1000 * least:.1f}")
        rows.append({"name": name, "seconds": median, "least_seconds": least, "all_seconds": times})
    found = ratios(seconds)
    Console().print(table, *(f"{name}: {ratio:.3g}" for name, ratio in found.items()), machine(), sep="\n")
    if arguments.json:
        setting = {"commit": COMMIT} | {name: value for name, value in vars(arguments).items() if name != "json"}
        result = {"machine": machine(), "setting": setting, "rows": rows, "ratios": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write machine, rows and ratios here")
    parser.add_argument("--samples", type=int, default=16, help="of each turn")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--feed-forward", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="timed of each")
    parser.set_defaults(device="cpu", precision="float32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
