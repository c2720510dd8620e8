"""Training from a store of a frozen tower's features against training from pixels through the tower: samples a second, losses.

    python benchmarks/feature_store.py --data ../shared/data [--tokens 1] [--steps 24] [--json FILE] [section.key=value ...]

Both runs are the recipe `emoji` on the first --pictures drawings of train, one rank that computes on all cores, one after the
other. The first epoch, in which each text is encoded once, is not counted. Everything is made in --folder; what is there already
is not made again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from machine import machine
from rich.table import Table

from m3p.console import PlainConsole

M3P = [sys.executable, "-m", "m3p"]
BATCH = 128
"""Samples of a step, as the recipe has it."""


def prepare(options: argparse.Namespace) -> dict[str, Path]:
    """Make shards of pictures and of features, unless they are there; return both."""
    folder, raw = options.folder, options.folder / "train.jsonl"
    pixels, features = folder / "pixels", folder / f"features-{options.tokens}"
    if not pixels.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with (options.data / "emoji" / "train.jsonl").open(encoding="utf-8") as lines:
            raw.write_text("".join(islice(lines, options.pictures)), encoding="utf-8")
        call("prepare", "captions", raw, "--images", options.data / "emoji", "--output", pixels)
    tower = options.data / "vision_tower"
    call("prepare", "features", pixels, "--tower", tower, "--tokens", str(options.tokens), "--output", features)
    return {"features": features, "pixels": pixels}


def train(name: str, shards: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train the recipe on `shards`, unless that was done; return the metrics of each step."""
    run = options.folder / f"run-{name}-{options.tokens}"
    source = f"[{{path: {json.dumps(str(shards))}, languages: [en]}}]"
    overrides = [
        *(
            f"run.folder={run}",
            f"run.steps={options.steps}",
            f"run.checkpoint_every={options.steps}",
            "run.evaluate=false",
        ),
        *(f"visual.folder={options.data / 'vision_tower'}", f"visual.tokens={options.tokens}", "evaluation={}"),
        *(f"model.initialise={options.data / 'encoder'}", f"objectives.image_caption.sources={source}"),
        f"schedule.warmup_steps={options.steps // 10}",
    ]
    call("train", "--recipe", "emoji", "--ranks", "1", *overrides, *options.overrides)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def call(*arguments: str | Path) -> None:
    """Run an m3p command; its messages are shown."""
    subprocess.run([*M3P, *map(str, arguments)], check=True)


def summary(metrics: list[dict[str, Any]], first: int) -> dict[str, float]:
    """Return the median rate and time of the steps after `first`."""
    rate = statistics.median(step["samples_per_second"] for step in metrics[first:])
    return {"samples_per_second": round(rate, 1), "ms_per_picture": round(1000 / rate, 3)}


def largest_difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Return the largest difference of a task's loss at any step, relative to the loss."""
    return max(
        abs(a["losses"][task] - b["losses"][task]) / abs(b["losses"][task])
        for a, b in zip(one, other, strict=True)
        for task in b["losses"]
    )


def main() -> None:
    """Prepare, train twice, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds emoji/, encoder/ and vision_tower/")
    parser.add_argument("--folder", type=Path, default=Path("runs/feature-store"))
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=1, help="of a picture")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args()
    found = {name: train(name, shards, options) for name, shards in prepare(options).items()}
    first = -(-options.pictures // BATCH)
    rows = [{"from": name, "tokens": options.tokens, **summary(metrics, first)} for name, metrics in found.items()]
    ratio = rows[0]["samples_per_second"] / rows[1]["samples_per_second"]
    difference = largest_difference(found["features"], found["pixels"])
    table = Table("training from", "samples/s", "ms a picture", title=f"{options.tokens} tokens a picture")
    for row in rows:
        table.add_row(row["from"], f"{row['samples_per_second']:,.0f}", f"{row['ms_per_picture']:.2f}")
    console = PlainConsole()
    console.print(table)
    console.print(f"{ratio:.1f} times as fast; losses differ by at most {difference:.1e} of themselves")
    console.print(machine())
    if options.json:
        figures = {
            "machine": machine(),
            "rows": rows,
            "ratios": {"features": ratio},
            "largest_loss_difference": difference,
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
