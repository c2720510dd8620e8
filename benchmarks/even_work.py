"""How long ranks wait for the one with the most tokens: a turn's samples in consecutive parts, and shared out by length.

    python benchmarks/even_work.py RECIPE [--ranks 8,64] [--samples 16] [--turns 20] [--json FILE] [section.key=value ...]

The lengths that decide come from the index files; those that are counted here are the tokens that the network sees.
Waiting is (tokens of the rank with the most) / (mean over ranks) - 1, its mean over turns. `--samples` is for one rank.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from machine import machine
from rich.console import Console
from rich.table import Table

from m3p.data.order.plan import balance, split
from m3p.objectives.objective import Objective
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives


def main() -> None:
    """Measure and print."""
    arguments = _parse()
    objectives = build_objectives(load_recipe(arguments.recipe, arguments.overrides))
    rows: list[dict[str, Any]] = [
        {"objective": name, "ranks": ranks, **waiting(objective, ranks, arguments.samples, arguments.turns)}
        for name, objective in objectives.items()
        for ranks in map(int, arguments.ranks.split(","))
    ]
    table = Table("objective", "ranks", "waiting, consecutive", "waiting, by length")
    for row in rows:
        table.add_row(str(row["objective"]), str(row["ranks"]), f"{row['consecutive']:.1%}", f"{row['by_length']:.1%}")
    Console().print(table, machine(), sep="\n")
    if arguments.json:
        ratios = {f"{row['objective']}_{row['ranks']}_ranks": row["by_length"] / row["consecutive"] for row in rows}
        result = {"machine": machine(), "rows": rows, "ratios": ratios}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def waiting(objective: Objective, ranks: int, samples: int, turns: int) -> dict[str, float]:
    """Return the mean waiting over `turns` turns of `ranks` x `samples` samples, for both ways."""
    found: dict[str, list[float]] = {"consecutive": [], "by_length": []}
    for turn in range(turns):
        positions = range(turn * ranks * samples, (turn + 1) * ranks * samples)
        tokens = {place: int(objective.batch(positions, [place]).lengths.sum()) for place in positions}
        ways: dict[str, Sequence[Sequence[Sequence[int]]]] = {
            "consecutive": [split(positions, ranks, rank, samples) for rank in range(ranks)],
            "by_length": balance(positions, objective.costs(positions), ranks, samples),
        }
        for way, of_ranks in ways.items():
            loads = [sum(tokens[place] for part in of_rank for place in part) for of_rank in of_ranks]
            found[way].append(max(loads) / mean(loads) - 1)
    return {way: mean(of_turns) for way, of_turns in found.items()}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--ranks", default="8,64")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--json", type=Path)
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
