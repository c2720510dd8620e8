"""A simulation of 8 to 1,024 GPUs: what limits a step there, beside scaling that others have published.

    python benchmarks/scaling.py [RECIPE] [DEEPSPEED_CONFIG] [--kind H200] [--host FILE] [--bus GB/s] [--json FILE]

Nothing here was measured on more than one GPU. A step is what `m3p plan` predicts: computing at the efficiency measured on one
H200, of the rank with the most tokens, or the program's own time where that is longer; then the contrastive loss, and what the
ranks send each other, as if nothing of it were hidden behind computing. A step never waits for data here, nor for a slow machine:
others' figures hold both, so that what is published is below what is simulated. Where the data is not here, samples have the mean
lengths of `benchmarks/mixed.py`. --host takes the program's time for a pass from a result of `benchmarks/host.py --device cuda`;
by default it is `speed.HOST`, measured beside an H200. --bus replaces the bus bandwidth that is assumed for the kind.

Two tables: the recipe's batch shared by more and more GPUs (strong scaling), turn by turn and with `run.join_turns`; and the
same samples a GPU for any number of them (weak scaling), as in most published figures.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from mixed import CAPTION, REGIONS, TEXT
from rich.console import Console
from rich.table import Table

from m3p.errors import UserError
from m3p.forecast import speed
from m3p.forecast.forecast import Planner, find_kind
from m3p.model.flops import Gpu
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.shipped import find_ds_config, find_recipe
from m3p.visual.regions import Regions

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
        speed.bus_bandwidth = lambda kind, ranks: arguments.bus * 1e9
    path, config, kind = find_recipe(arguments.recipe), find_ds_config(arguments.deepspeed_config), arguments.kind
    recipe = load_recipe(path, [])
    planner = Planner(recipe, config)
    lengths, layers = mean_lengths(recipe, planner), planner.sizes.shape.layers
    if arguments.host is not None:
        speed.HOST = arguments.host / layers
    points = list(simulate(path, config, kind, lengths))
    console = Console(width=130)
    for scaling in dict.fromkeys(point.scaling for point in points):
        console.print(_table(scaling, [point for point in points if point.scaling == scaling], kind.name))
    console.print(_published())
    if lengths:
        console.print(
            f"Note: data that is not here is taken to have the mean lengths of mixed.py: {' '.join(lengths)}."
        )
    console.print(f"Program: {1000 * speed.HOST * layers:.1f} ms a pass. Nothing here was measured on several GPUs.")
    if arguments.json:
        rows = [{**vars(point), "samples_per_second_and_gpu": point.speed} for point in points]
        found = {"lengths": lengths, "rows": rows, "published": [vars(one) for one in PUBLISHED]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def mean_lengths(recipe: Recipe, planner: Planner) -> list[str]:
    """Return settings that give samples the mean lengths of mixed.py, for objectives of which the data is not here."""
    absent = [name for name in planner.streams if any(f"objectives.{name}:" in line for line in planner.assumptions)]
    pictured = [name for name in absent if planner.streams[name].sample.visual_rows]
    found = [f"objectives.{name}.max_tokens={int(mean(CAPTION if name in pictured else TEXT))}" for name in absent]
    regions = pictured and isinstance(recipe.visual, Regions)
    return [*found, *([f"visual.max_regions={int(mean(REGIONS))}"] if regions else [])]


def simulate(path: Path, config: Path, kind: Gpu, lengths: list[str]) -> Iterator[Point]:
    """Yield a point for each number of GPUs and kind of scaling; `lengths` are settings of the recipe."""
    for scaling, joined, weak in (
        ("strong", False, False),
        ("strong, one pass", True, False),
        ("weak, one pass", True, True),
    ):
        whole = load_recipe(path, [*lengths, f"run.join_turns={str(joined).lower()}"])
        planner = Planner(whole, config)
        for gpus in GPUS:
            if weak:
                planner = Planner(load_recipe(path, [*lengths, *_full_passes(whole, gpus)]), config)
            found = planner.forecast(planner.setting(gpus, kind), kind)
            assert found.seconds is not None
            yield Point(scaling, gpus, found.samples, found.seconds, found.parts)


def _full_passes(whole: Recipe, gpus: int) -> list[str]:
    """Return settings that give a step so many samples that the one pass of each of `gpus` is full."""
    turns = whole.plan().turns_per_step
    sizes = {name: gpus * max(1, one.micro_batch // turns) for name, one in whole.active_objectives.items()}
    return ["run.join_turns=true", *(f"objectives.{name}.batch_size={size}" for name, size in sizes.items())]


def _host(path: str) -> float:
    """Return the seconds of a pass from a result of host.py."""
    try:
        rows = {row["name"]: row["seconds"] for row in json.loads(Path(path).read_text())["rows"]}
        return float(rows["one pass"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"no result of host.py: {error!r}") from None


def _kind(name: str) -> Gpu:
    """Return the GPU called `name`."""
    try:
        found = find_kind(name)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if found is None:
        raise argparse.ArgumentTypeError("times are predicted for GPUs alone")
    return found


def _rate(text: str) -> float:
    """Return a number above 0."""
    found = float(text)
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError("a number above 0 is wanted")
    return found


def _table(scaling: str, points: list[Point], kind: str) -> Table:
    columns = ("computing, ms", "program, ms", "sending, ms", "pair loss, ms", "step, ms", "of 8 GPUs' speed")
    table = Table("GPUs", "samples a step", *columns, title=f"{scaling}, {kind}: simulated")
    for point in points:
        parts = [f"{1000 * point.parts[name]:.1f}" for name in ("computing", "launching", "sending", "pairs")]
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
    parser.add_argument("--kind", type=_kind, default="H200", help="of GPU, as in `m3p plan`")
    parser.add_argument("--host", type=_host, help="a result of benchmarks/host.py")
    parser.add_argument("--bus", type=_rate, help="GB/s of a GPU in sums over all ranks")
    parser.add_argument("--json", type=Path, help="write rows and published figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
