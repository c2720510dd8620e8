"""Our loader against webdataset, grain, megatron-energon and litdata: same shards, same decoding, same tokens, one run.

    python benchmarks/loader.py --peers FOLDER [--kinds KIND ...] [--json FILE]

The peers are installed into environments of their own under FOLDER (with this one's packages underneath). Rounds go
over all loaders in turn, so that a busy machine disturbs them alike; the best round counts. Then ours and the best peer
alternate, each at its best, to see how far their ratio scatters. Prints samples a second, and samples a second of
processor time, of files that lie in memory and of pictures that come from disk; and the time to the first batch when a run
resumes at sample 1,000,000 (webdataset has no state and must read its way there: extrapolated; energon and litdata go on
from a state saved earlier).
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from loader_data import make
from machine import machine
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent

INSTALL: dict[str, list[str]] = {
    "webdataset": [],
    "grain": ["grain"],
    "energon": ["megatron-energon"],
    "litdata": ["litdata"],
}
"""What each peer needs beside this environment."""
OURS = ("ours", "ours, masked")
LOADERS = (*OURS, *INSTALL)
WORKERS = (0, 1, 2)
KINDS = {
    "pictures": ["pictures"],
    "text": ["text"],
    "pictures_from_disk": ["pictures", "--from-disk"],
}
"""What is loaded. From disk: less than an epoch, none of which lies in memory when it begins."""
CORES = len(os.sched_getaffinity(0))
THREADS = [2**power for power in range(5) if CORES <= 8 * 2**power <= 16 * CORES]
"""That the loaders with threads of their own are tried with in the first round; the fastest stays. Up to grain's default."""
THREADED = {"pictures": ("ours", "grain"), "text": (), "pictures_from_disk": ("ours", "grain")}
"""Which those are; ours with masks takes as many as without. Decoders release Python's lock, and what text needs does not."""


def main() -> None:
    """Make the data and the environments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder for the data and the peers' environments")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=5, help="alternating runs of ours and the best peer")
    parser.add_argument("--pictures", type=int, default=6_000)
    parser.add_argument("--passages", type=int, default=40_000)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, "resume"], default=[*KINDS, "resume"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = options.peers / "data"
    make(data, options.pictures, options.passages)
    python = {name: environment(options.peers, name, packages) for name, packages in INSTALL.items()}
    python |= dict.fromkeys(OURS, sys.executable)
    kinds = [kind for kind in KINDS if kind in options.kinds]
    rows = [row for kind in kinds for row in measure(kind, python, data, options.rounds)]
    if "resume" in options.kinds:
        rows += [first_batch(name, python[name], data) for name in LOADERS if name != "ours, masked"]
    pairs = {kind: alternate(kind, rows, python, data, options.pairs) for kind in kinds if options.pairs}
    result = {"machine": machine(), "rows": rows, "pairs": pairs, "ratios": ratios(rows, kinds)}
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def environment(folder: Path, name: str, packages: list[str]) -> str:
    """Return the interpreter of a peer, installed on the first call; packages of this environment are visible in it."""
    if not packages:
        return sys.executable
    home = folder / name
    python, done = home / "bin" / "python", home / "installed"
    if not done.exists():
        print(f"installing {' '.join(packages)} into {home}")
        venv.create(home, with_pip=True, clear=True)
        site = next(home.glob("lib/python3.*/site-packages"))
        own = [path for path in sys.path if path.endswith("site-packages")]
        (site / "underneath.pth").write_text("\n".join(own) + "\n")
        # With the versions of this environment, torch above all: a peer that brings another one would be compared with two.
        same = ["--constraint", str(ROOT / "requirements.txt")]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *same, *packages], check=True)
        done.touch()
    return str(python)


def measure(kind: str, python: dict[str, str], data: Path, rounds: int) -> list[dict[str, Any]]:
    """Return a row for every loader and worker count: the best of `rounds`, at the number of threads that was best at first."""
    rows: list[dict[str, Any]] = [
        {"kind": kind, "loader": name, "workers": workers, "threads": 2, "rate": 0, "cpu": 0}
        for workers in WORKERS
        for name in LOADERS
    ]
    for number in range(rounds):
        for row in rows:
            name, workers = row["loader"], row["workers"]
            if name == "ours, masked":
                row["threads"] = _row(rows, "ours", workers)["threads"]
            for threads in THREADS if number == 0 and name in THREADED[kind] else [row["threads"]]:
                found = run(python[name], name, workers, data, *KINDS[kind], "--threads", str(threads))
                setting = f"{workers} workers, {threads} threads each"
                print(f"round {number + 1}: {kind}, {setting}, {name}: {found['rate']:,.0f}/s", flush=True)
                if found["rate"] > row["rate"]:
                    row["threads"] = threads
                row |= {figure: round(max(row[figure], found[figure])) for figure in ("rate", "cpu")}
    return rows


def _row(rows: list[dict[str, Any]], name: str, workers: int) -> dict[str, Any]:
    return next(row for row in rows if row["loader"] == name and row["workers"] == workers)


def alternate(kind: str, rows: list[dict[str, Any]], python: dict[str, str], data: Path, number: int) -> list[float]:
    """Run ours and the best peer in turn, `number` times, each as it was fastest: -> the ratios of their rates, rising."""
    found = []
    for _ in range(number):
        rates = []
        for row in (best(rows, kind, ours=True), best(rows, kind, ours=False)):
            name, settings = row["loader"], ("--threads", str(row["threads"]))
            rates.append(run(python[name], name, row["workers"], data, *KINDS[kind], *settings)["rate"])
        found.append(round(rates[0] / rates[1], 3))
    return sorted(found)


def best(rows: list[dict[str, Any]], kind: str, ours: bool) -> dict[str, Any]:
    """Return the row of the fastest loader of a kind: ours, without masks, or a peer."""
    mine = [
        row for row in rows if row["kind"] == kind and (row["loader"] == "ours" if ours else row["loader"] in INSTALL)
    ]
    return max(mine, key=lambda row: row["rate"])


def first_batch(name: str, python: str, data: Path) -> dict[str, Any]:
    """Return the row of the time to the first batch of text after resuming at sample 1,000,000, one worker."""
    return {"kind": "resume", "loader": name, "workers": 1, **run(python, name, 1, data, "text", "--resume")}


def run(python: str, name: str, workers: int, data: Path, kind: str, *options: str) -> dict[str, float]:
    """Run `loader_peers.py` and return what it printed last."""
    path = f"{ROOT / 'trainer'}{os.pathsep}{ROOT}"
    settings = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    arguments = [name, kind, str(workers), str(data), *options]
    program = [python, str(ROOT / "benchmarks" / "loader_peers.py"), *arguments]
    done = subprocess.run(program, env=settings, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratios(rows: list[dict[str, Any]], kinds: list[str]) -> dict[str, float]:
    """Return ours over the best peer: over all worker counts, and at each; by the clock, and by processor time."""
    found = {}
    for kind in kinds:
        mine = [row for row in rows if row["kind"] == kind]
        found[f"{kind}_vs_best_peer"] = _ratio(mine, "rate")
        found[f"{kind}_vs_best_peer_by_processor_time"] = _ratio(mine, "cpu")
        for workers in WORKERS:
            at = [row for row in mine if row["workers"] == workers]
            found[f"{kind}_vs_best_peer_{workers}_workers"] = _ratio(at, "rate")
            tars = [row for row in at if row["loader"] != "litdata"]
            found[f"{kind}_vs_best_reader_of_tars_{workers}_workers"] = _ratio(tars, "rate")
    return found


def _ratio(rows: list[dict[str, Any]], figure: str) -> float:
    ours = max(row[figure] for row in rows if row["loader"] == "ours")
    return round(ours / max(row[figure] for row in rows if row["loader"] not in OURS), 2)


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title=result["machine"])
    for heading in (
        "what",
        "loader",
        "workers",
        "threads",
        "samples/s",
        "a processor second",
        "seconds to first batch",
    ):
        table.add_column(heading)
    for row in result["rows"]:
        figures = (("rate", 0), ("cpu", 0), ("seconds", 2))
        values = [f"{row[name]:,.{digits}f}" if name in row else "" for name, digits in figures]
        threads = str(row.get("threads", "")) if row["loader"] in (*OURS, "grain") else ""
        table.add_row(row["kind"], row["loader"], str(row["workers"]), threads, *values)
    Console(width=110).print(table)
    for kind, found in result["pairs"].items():
        print(f"{kind}: {len(found)} alternating runs of ours and the best peer: {', '.join(map(str, found))}")
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio}")


if __name__ == "__main__":
    main()
