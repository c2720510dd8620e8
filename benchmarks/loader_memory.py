"""Resident memory of the loader over a million samples, nine tenths text, one tenth pictures: it should stay where it is.

    python benchmarks/loader_memory.py --data FOLDER [--samples 1000000] [--json FILE]

FOLDER is filled with the shards of `loader.py`, unless they are there. The figures are of the trainer's side of the loader
and of its worker, each with what they share.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from loader_data import make
from loader_ours import BATCH, _nothing, _objective
from machine import machine
from rich.console import Console
from rich.table import Table

from m3p.data.loader.loader import DataConfig, MicroBatches, load
from m3p.data.order.plan import MicroBatchPlan, Plan, Stream

PARTS = 10


def main() -> None:
    """Load, look at the memory ten times on the way, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    make(options.data, 6_000, 40_000)
    torch.set_num_threads(1)
    rows = measure(options.data, options.samples, options.workers)
    grown = {f"{who}_growth": round(rows[-1][who] / rows[0][who], 3) for who in ("trainer", "workers")}
    result: dict[str, Any] = {"machine": machine(), "rows": rows, "ratios": grown}
    table = Table(title=result["machine"])
    for heading in ("samples", "seconds", "trainer, MB", "workers, MB"):
        table.add_column(heading)
    for row in rows:
        figures = (row["samples"], row["seconds"], row["trainer"], row["workers"])
        table.add_row(*(f"{figure:,.0f}" for figure in figures))
    Console(width=110).print(table)
    print(*(f"{name}: {ratio}" for name, ratio in grown.items()), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(data: Path, samples: int, workers: int) -> list[dict[str, Any]]:
    """Return resident MB after each tenth of the samples, the first one a hundredth in."""
    names = {"text": 9, "pictures": 1}
    objectives = {name: _objective(name, data, True) for name in names}
    streams = [Stream(name, weight, BATCH) for name, weight in names.items()]
    plan = MicroBatchPlan(Plan(streams, None), 1, 0, dict.fromkeys(names, BATCH))
    last = samples // BATCH
    looks = {last // 100, *(last * part // PARTS for part in range(1, PARTS + 1))}
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    # More than is looked at, so that the workers still live at the last look.
    batches = load(MicroBatches(plan, objectives), 0, 2 * last, DataConfig(workers=workers), False, _nothing)
    for number in range(last + 1):
        next(batches)
        if number in looks:
            me = psutil.Process(os.getpid())
            others = sum(child.memory_info().rss for child in me.children())
            memory = {"trainer": me.memory_info().rss / 1e6, "workers": others / 1e6}
            rows.append({"samples": number * BATCH, "seconds": time.perf_counter() - began, **memory})
            print(f"{number * BATCH:,} samples: {memory['trainer']:.0f} + {memory['workers']:.0f} MB", flush=True)
    return rows


if __name__ == "__main__":
    main()
