"""What a checkpoint costs: how long training stands still for a save, and how long a killed run takes to its next step.

    python benchmarks/checkpoint.py [--width 512] [--layers 6] [--ranks 2] [--stage 2] [--saves 5] [--json FILE]

Three ways to save the same run: `background` (as the trainer does), `blocking` (the same files, waited for), and DeepSpeed's
own `save_checkpoint`, which resumes only on as many ranks of the same stage. `stands still` is what the call takes in the
training process, on the slowest rank; `written` is when the checkpoint is whole. DeepSpeed's is not flushed to disk.
The data are the tiny ones of the tests: only the size of the network matters here.
"""

import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import typer  # noqa: E402
from machine import machine  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

WAYS = ("background", "blocking", "deepspeed")
EVERY = 4
"""Steps from one save to the next."""


def rank(way: str, times: Path) -> None:
    """Train as run.py does, with saves of one `way`, their seconds written to `times`."""
    from m3p.checkpoints.save import Checkpoints

    real = Checkpoints.save

    def save(self: Any, engine: Any, state: Any) -> None:
        began = time.perf_counter()
        if way == "deepspeed":
            folder = str(self.folder.parent / "deepspeed")
            engine.deepspeed.save_checkpoint(folder, tag=f"{state.step}", client_state={})
            stood = written = time.perf_counter() - began
        else:
            real(self, engine, state)
            stood = time.perf_counter() - began
            if way == "blocking":
                self.finish()
                stood = time.perf_counter() - began
            else:
                pending = self._pending
                pending.add_done_callback(lambda done: note(times, state.step, stood, time.perf_counter() - began))
                return
            written = stood
        note(times, state.step, stood, written)

    Checkpoints.save = save  # type: ignore[method-assign]
    sys.argv[0] = str(ROOT / "trainer" / "run.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


def note(times: Path, step: int, stood: float, written: float) -> None:
    """Append the seconds of one save."""
    with times.with_suffix(f".{os.environ['RANK']}").open("a") as file:
        file.write(json.dumps({"step": step, "stood": stood, "written": written}) + "\n")


def start(
    way: str, recipe: Path, ranks: int, stage: int, settings: list[str], folder: Path
) -> "subprocess.Popen[bytes]":
    """Start a run; its output is `folder`/WAY.out."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["deepspeed", "--num_gpus", str(ranks), str(Path(__file__).resolve()), "--recipe", str(recipe)]
    command += ["--deepspeed_config", str(ROOT / "ds_configs" / f"zero{stage}.json")]
    command += [f"way={way}", f"times={folder / way}", *settings]
    with (folder / f"{way}.out").open("ab") as file:
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


def saves(folder: Path, way: str, ranks: int) -> tuple[float, float]:
    """Return the medians of (seconds stood still, seconds until written), each save by its slowest rank."""
    paths = [folder / f"{way}.{rank}" for rank in range(ranks)]
    by_rank = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    each = list(zip(*by_rank, strict=True))[1:]  # the first one makes folders and fills caches
    return tuple(statistics.median(max(one[name] for one in save) for save in each) for name in ("stood", "written"))


def steps(run: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's metrics."""
    path = run / "metrics.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if path.exists()
        else []
    )


def wait_for(run: Path, step: int, process: "subprocess.Popen[bytes]", seconds: float = 600) -> None:
    """Wait until `run` has done `step`."""
    end = time.monotonic() + seconds
    while max((line["step"] for line in steps(run)), default=0) < step:
        if process.poll() is not None or time.monotonic() > end:
            sys.exit(f"error: {run} did not come to step {step}; see {run.parent}/*.out")
        time.sleep(0.02)


def kill_and_start(recipe: Path, ranks: int, stage: int, settings: list[str], folder: Path) -> dict[str, float]:
    """Kill all processes of a run three steps after a checkpoint and start it again."""
    run = folder / "killed"
    settings = [*settings, f"run.folder={run}"]
    process = start("background", recipe, ranks, stage, settings, folder)
    wait_for(run, 2 * EVERY + 3, process)
    while not (run / "checkpoints" / f"step-{2 * EVERY:08d}").exists():
        time.sleep(0.02)
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        one.kill()
    process.wait()
    lost = max(line["step"] for line in steps(run)) - 2 * EVERY
    began = time.perf_counter()
    process = start("background", recipe, ranks, stage, settings, folder)
    while len(steps(run)) != 2 * EVERY:  # a resumed run first takes back what the killed one did after its checkpoint
        time.sleep(0.02)
        if process.poll() is not None:
            sys.exit(f"error: {run} did not start again; see {folder}/*.out")
    loaded = time.perf_counter() - began
    wait_for(run, 2 * EVERY + 1, process)
    found = {"steps_lost": float(lost), "ready_seconds": loaded, "next_step_seconds": time.perf_counter() - began}
    process.wait()
    return found


def main(
    width: Annotated[int, typer.Option(help="Width of the network.")] = 512,
    layers: Annotated[int, typer.Option(help="Its layers.")] = 6,
    ranks: Annotated[int, typer.Option(help="Processes.")] = 2,
    stage: Annotated[int, typer.Option(help="ZeRO stage.")] = 2,
    number: Annotated[int, typer.Option("--saves", help="Saves of each way; the first is not counted.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Measure, print a table, write JSON."""
    from tests.tiny import make_tiny

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = make_tiny(folder / "data")
        shape = f"{{layers: {layers}, width: {width}, heads: 8, feed_forward: {4 * width}, positions: 66}}"
        settings = [f"model.shape={shape}", f"run.steps={number * EVERY}", f"run.checkpoint_every={EVERY}"]
        settings += ["optimizer.learning_rate=0.0001"]
        rows = []
        for way in WAYS:
            if start(way, recipe, ranks, stage, [*settings, f"run.folder={folder / f'run-{way}'}"], folder).wait():
                sys.exit(f"error: the run ended badly\n{(folder / f'{way}.out').read_text()[-3000:]}")
            stood, written = saves(folder, way, ranks)
            times = [line["seconds"] for line in steps(folder / f"run-{way}")[1:]]
            rows.append(
                {
                    "way": way,
                    "stands_still_seconds": stood,
                    "written_seconds": written,
                    "step_seconds": statistics.median(times),
                }
            )
        size = sum(
            path.stat().st_size
            for path in (folder / "run-background" / "checkpoints" / f"step-{number * EVERY:08d}").iterdir()
        )
        killed = kill_and_start(recipe, ranks, stage, settings, folder)
    report(rows, killed, size, json_file)


def report(rows: list[dict[str, Any]], killed: dict[str, float], size: int, json_file: Path | None) -> None:
    """Print and write."""
    table = Table(
        "way of saving",
        "training stands still",
        "whole after",
        "median step",
        title=f"checkpoint of {size / 1e6:.0f} MB",
    )
    for row in rows:
        table.add_row(
            row["way"],
            *(f"{row[name] * 1000:.0f} ms" for name in ("stands_still_seconds", "written_seconds", "step_seconds")),
        )
    Console().print(table)
    Console().print(
        f"killed {killed['steps_lost']:.0f} steps after a checkpoint: {killed['ready_seconds']:.1f} s from the command to the "
        f"restored state, {killed['next_step_seconds']:.1f} s to the next step done"
    )
    if json_file is not None:
        still = {row["way"]: row["stands_still_seconds"] for row in rows}
        ratios = {"background_over_deepspeed": still["background"] / still["deepspeed"]}
        found = {"machine": machine(), "checkpoint_bytes": size, "rows": rows, "after_a_kill": killed, "ratios": ratios}
        json_file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    own = {word.split("=")[0]: word.split("=", 1)[1] for word in sys.argv[1:] if word.startswith(("way=", "times="))}
    if own:
        sys.argv = [word for word in sys.argv if not word.startswith(("way=", "times="))]
        rank(own["way"], Path(own["times"]))
    else:
        typer.run(main)
