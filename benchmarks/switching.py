"""What code-switching gives: one recipe trained three ways, evaluated on the same queries, compared pair by pair.

    python benchmarks/switching.py [--recipe FILE] [--ranks 2] [--variants with,without] [--json FILE] [section.key=value ...]

`with`: the recipe as it is. `without`: `code_switched` at weight 0. `unswitched`: as many pairs in the same order as
`with`, none of them switched. Each run is a folder under --folder; one that is complete is not trained again.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from machine import machine

from m3p.console import PlainConsole
from m3p.retrieval.comparison import compare, differences
from m3p.retrieval.result import Evaluation
from m3p.retrieval.table import print_table

ROOT = Path(__file__).parents[1]
VARIANTS = {
    "with": [],
    "without": ["objectives.code_switched.weight=0"],
    "unswitched": ["objectives.code_switched.switching.sentence_rate=0"],
}


def train(run: Path, options: argparse.Namespace, overrides: list[str]) -> None:
    """Train one variant through the launcher, unless its folder says that it is done."""
    status = run / "status"
    if status.is_file() and status.read_text().strip() == "done":
        return
    command = ["deepspeed", "--num_gpus", str(options.ranks), str(ROOT / "trainer" / "run.py")]
    command += ["--recipe", str(options.recipe), "--deepspeed_config", str(options.deepspeed_config)]
    subprocess.run([*command, f"run.folder={run}", *options.overrides, *overrides], check=True)


def row(name: str, result: Evaluation) -> dict[str, Any]:
    """Return the figures of one variant."""
    never = result.mean_never_captioned
    return {
        "run": name,
        "mean_recall": {language: found.mean_recall for language, found in result.languages.items()},
        "mean_never_captioned": None if never is None else never.mean_recall,
        "interval_never_captioned": None if never is None else never.interval,
        "chance": result.mean.chance,
    }


def main() -> None:
    """Train, evaluate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "trainer" / "m3p" / "recipes" / "demo.yaml")
    parser.add_argument("--deepspeed_config", type=Path, default=ROOT / "ds_configs" / "zero1.json")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/switching"))
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which to train, by commas; `with` first")
    parser.add_argument("--evaluation", default="dev", help="an evaluation of the recipe")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args()
    results = {}
    for name in options.variants.split(","):
        train(options.folder / name, options, VARIANTS[name])
        results[name] = Evaluation.load(options.folder / name / "evaluation" / f"{options.evaluation}.json")
    console = PlainConsole()
    for result in results.values():
        print_table(result, console)
    others = [result for name, result in results.items() if name != "with"]
    for other in others:
        console.print(compare(results["with"], other))
    if options.json:
        gains = {f"with_less_{other.system}": differences(results["with"], other) for other in others}
        figures = {
            "machine": machine(),
            "rows": [row(name, result) for name, result in results.items()],
            "ratios": {},
            "differences": {
                name: {line: [found.value, found.low, found.high] for line, found in gain.items()}
                for name, gain in gains.items()
            },
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
