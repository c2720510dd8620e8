"""Print the medians of a run's figures once it is warm.

    python benchmarks/steady_state.py RUN [--skip 20] [--json FILE]

MFU is that of `trainer/m3p/model/flops.py`: real lengths, masked words and regions; nothing computed twice is counted.
Its formula is printed, and `mfu_6nd` stands beside it: 6ND over the encoder's parameters.
"""

import argparse
import json
import statistics
from pathlib import Path

from m3p.model.flops import FORMULA

FIGURES = (
    "mfu",
    "mfu_6nd",
    "teraflops",
    "tokens_per_second",
    "samples_per_second",
    "seconds",
    "data_wait_share",
    "peak_memory_gib",
    "loss",
)


def medians(lines: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure that all lines have."""
    return {name: statistics.median(line[name] for line in lines) for name in FIGURES if name in lines[0]}


def main() -> None:
    """Read and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--skip", type=int, default=20, help="steps before the run is warm")
    parser.add_argument("--json", type=Path, help="write them here, with what the run says of its machine and packages")
    options = parser.parse_args()
    lines = [json.loads(line) for line in (options.run / "metrics.jsonl").read_text().splitlines()][options.skip :]
    found = medians(lines)
    for name, value in found.items():
        print(f"median of {len(lines)} steps: {name} {value:.4g}")
    if "mfu" in found:
        print(f"MFU: {FORMULA}")
    if options.json:
        environment = json.loads((options.run / "environment.json").read_text())
        result = {"environment": environment, "mfu_formula": FORMULA, "steps": len(lines), "medians": found}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
