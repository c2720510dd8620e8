"""Samples a second that the loader makes of the published size: text, and pairs with regions of 2,048 numbers and all tasks.

    python benchmarks/loader_regions.py FOLDER [--json FILE] [--workers 0,1,2] [--seconds 10]

FOLDER gets generated data (`generated.py`), unless it is there. An H200 trains on 2,900 of them a second (`gpu.sh`).
"""

import argparse
import json
import time
from pathlib import Path

from generated import generate
from machine import machine
from rich.console import Console
from rich.table import Table

from m3p.data.loader.loader import MicroBatches, load
from m3p.data.order.plan import MicroBatchPlan
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.training.build_objectives import build_objectives

OBJECTIVES = ("multilingual_text", "image_caption", "code_switched")
BATCH = 256
FOR_EVER = 10**6
WARM = 12
"""Micro-batches before anything is timed."""


def published(data: Path, workers: int) -> Recipe:
    """Return trainer/m3p/recipes/m3p_base.yaml on generated data."""
    pairs = [f"objectives.{name}.sources.0.path={data}/cc3m" for name in OBJECTIVES[1:]]
    sizes = [f"objectives.{name}.{size}={BATCH}" for name in OBJECTIVES for size in ("batch_size", "micro_batch")]
    overrides = [
        "model.initialise=null",
        f"model.tokenizer={data}/tokenizer",
        "model.shape={layers: 12, width: 768, heads: 12, feed_forward: 3072}",
        f"objectives.multilingual_text.sources.0.path={data}/text/*",
        f"objectives.code_switched.switching.dictionary={data}/dictionary",
        f"data.workers={workers}",
    ]
    return load_recipe(Path(__file__).parents[1] / "trainer/m3p/recipes/m3p_base.yaml", [*overrides, *pairs, *sizes])


def measure(recipe: Recipe, seconds: float) -> float:
    """Return samples a second."""
    objectives, plan = build_objectives(recipe), recipe.plan()
    micro_batch = dict.fromkeys(OBJECTIVES, BATCH)
    costs = {name: objective.costs for name, objective in objectives.items()}
    batches = MicroBatches(MicroBatchPlan(plan, 1, 0, micro_batch, costs), objectives)
    found = load(batches, 0, FOR_EVER, recipe.data, False, _nothing)
    for _ in range(WARM):
        next(found)
    began, samples = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        # Whole rounds, since text is made faster than pairs.
        samples += sum(next(found).samples for _ in OBJECTIVES)
    return samples / (time.perf_counter() - began)


def _nothing(worker: int) -> None:
    """A worker that needs no preparation."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, help="write machine and rates here")
    parser.add_argument("--workers", default="0,1,2", help="numbers of workers")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    if not options.folder.exists():
        generate(options.folder, size=250_002, pairs=1024, texts=4096, feature_size=2048)
    table, rates = Table("workers", "samples/s"), {}
    for workers in map(int, options.workers.split(",")):
        rates[workers] = round(measure(published(options.folder, workers), options.seconds))
        table.add_row(str(workers), f"{rates[workers]:,}")
    Console().print(table, machine(), sep="\n")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "samples_per_second": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
