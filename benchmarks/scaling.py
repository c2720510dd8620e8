"""A simulation of 8 to 1,024 GPUs: what limits a step there, beside scaling that others have published.

    python benchmarks/scaling.py [RECIPE] [DEEPSPEED_CONFIG] [--kind H200] [--host FILE] [--bus GB/s] [--json FILE]

Nothing here was measured on more than one GPU. A step is what `m3p plan` predicts: computing at the efficiency measured on one
H200, or the program's own time where that is longer, and then what the ranks send each other, as if nothing of it were hidden
behind computing. --host takes the program's time for a pass from a result of `benchmarks/host.py --device cuda`; by default it
is `forecast.HOST`, measured beside an H200. --bus replaces the bus bandwidth between nodes that is assumed for the kind.

Two tables: the recipe's batch shared by more and more GPUs (strong scaling), turn by turn and with `run.join_turns`; and the
same samples a GPU for any number of them (weak scaling), as in most published figures.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from m3p.forecast import forecast
from m3p.forecast.forecast import Planner, find_kind
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.shipped import find_ds_config, find_recipe

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Published:
    """How a program of others scales, as they say."""

    who: str
    hardware: str
    gpus: int
    efficiency: float
    """Samples a second and GPU, over those of the smallest run that they tell of."""
    source: str


PUBLISHED = (
    Published(
        "CLAP, LAION-AI", "GH200", 512, 545 / 624, "README of LAION-AI/open-clap-scaling: 624 and 545 samples/s a GPU"
    ),
    Published("NeMo CLIP g/14", "H100", 128, 14.8 / 16, "NVIDIA NeMo's performance page: 14.8 times on 16 nodes"),
    Published(
        "BERT-large, NVIDIA Eos", "H100", 64, 837 / 1013, "MLPerf training 4.0: sequences/s a GPU, 64 H100 over 8 H200"
    ),
    Published("ESM-2 3B, BioNeMo", "A100", 256, 0.969, "NVIDIA BioNeMo's performance page"),
)


@dataclass(frozen=True)
class Point:
    """A step on so many GPUs."""

    scaling: str
    """"strong", "strong, one pass" or "weak, one pass"."""
    gpus: int
    samples: int
    """Of a step, over all GPUs."""
    seconds: float
    parts: dict[str, float]

    @property
    def speed(self) -> float:
        """Samples a second and GPU."""
        return self.samples / self.seconds / self.gpus


def main() -> None:
    """Simulate, print and write."""
    arguments = _parse()
    if arguments.bus is not None:
        forecast.bus_bandwidth = lambda kind, ranks: arguments.bus * 1e9
    recipe, config = find_recipe(arguments.recipe), find_ds_config(arguments.deepspeed_config)
    planner = Planner(load_recipe(recipe, []), config)
    layers = planner.sizes.shape.layers
    if arguments.host is not None:
        forecast.HOST = _host(arguments.host) / layers
    points = list(simulate(recipe, config, arguments.kind))
    console = Console(width=130)
    for scaling in dict.fromkeys(point.scaling for point in points):
        console.print(_table(scaling, [point for point in points if point.scaling == scaling], arguments.kind))
    console.print(_published())
    for line in planner.assumptions:
        console.print(f"Note: {line}.")
    console.print(f"Program: {1000 * forecast.HOST * layers:.1f} ms a pass. Nothing here was measured on several GPUs.")
    if arguments.json:
        rows = [{**vars(point), "samples_per_second_and_gpu": point.speed} for point in points]
        arguments.json.write_text(
            json.dumps({"rows": rows, "published": [vars(one) for one in PUBLISHED]}, indent=1) + "\n"
        )


def simulate(path: Path, config: Path, kind_name: str) -> Iterator[Point]:
    """Yield a point for each number of GPUs and kind of scaling."""
    kind = find_kind(kind_name)
    assert kind is not None, "a CPU has no forecast of time"
    whole = load_recipe(path, [])
    for scaling, joined, weak in (
        ("strong", False, False),
        ("strong, one pass", True, False),
        ("weak, one pass", True, True),
    ):
        for gpus in GPUS:
            recipe = _changed(path, whole, joined, gpus if weak else None)
            planner = Planner(recipe, config)
            found = planner.forecast(planner.setting(gpus, kind), kind)
            assert found.seconds is not None
            yield Point(scaling, gpus, found.samples, found.seconds, found.parts)


def _changed(path: Path, whole: Recipe, joined: bool, gpus: int | None) -> Recipe:
    """Return the recipe, its turns in one pass or not; with `gpus`, so many samples of each turn that a pass is full."""
    overrides = [f"run.join_turns={str(joined).lower()}"]
    turns = whole.plan().turns_per_step
    for name, one in whole.active_objectives.items():
        if gpus is not None:
            overrides.append(f"objectives.{name}.batch_size={gpus * max(1, one.micro_batch // turns)}")
    return load_recipe(path, overrides)


def _host(path: Path) -> float:
    """Return the seconds of a pass from a result of host.py."""
    rows = {row["name"]: row["seconds"] for row in json.loads(path.read_text())["rows"]}
    return float(rows["one pass"])


def _table(scaling: str, points: list[Point], kind: str) -> Table:
    columns = ("GPUs", "samples a step", "computing, ms", "program, ms", "sending, ms", "step, ms", "of 8 GPUs' speed")
    table = Table(*columns, title=f"{scaling}, {kind}: simulated")
    for point in points:
        parts = [f"{1000 * point.parts[name]:.1f}" for name in ("computing", "launching", "sending")]
        share = f"{point.speed / points[0].speed:.0%}"
        table.add_row(str(point.gpus), f"{point.samples:,}", *parts, f"{1000 * point.seconds:.1f}", share)
    return table


def _published() -> Table:
    table = Table("who", "hardware", "GPUs", "of the smallest run's speed", "source", title="published")
    for one in PUBLISHED:
        table.add_row(one.who, one.hardware, str(one.gpus), f"{one.efficiency:.0%}", one.source)
    return table


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="m3p_base")
    parser.add_argument("deepspeed_config", nargs="?", default="zero1")
    parser.add_argument("--kind", default="H200", help="of GPU, as in `m3p plan`")
    parser.add_argument("--host", type=Path, help="a result of benchmarks/host.py")
    parser.add_argument("--bus", type=float, help="GB/s of a GPU in sums over all ranks")
    parser.add_argument("--json", type=Path, help="write rows and published figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
