"""One experiment on one GPU: what each way to compute the parts of a step takes there. In one command, under nine minutes.

    python benchmarks/variants.py [--parts ceilings,gemm,norm,gelu,attention,head,step,host] [--budget 480] [--json FILE] [--cpu]

    ceilings   copies, one large multiplication, pinned memory to the GPU, an empty launch: what all else is compared with
    gemm       the linear layers of the published size at 139,520 slots: forward, and both gradients
    norm       dropout, residual and layer norm: torch, torch.compile, Triton with and without dropout
    gelu       GELU and the bias gradient of the layer before it: torch, torch.compile
    attention  sequences of a pair turn: torch's variable-length kernel, as they come and sorted by length; grouped
    head       the word loss at 787, 5,069 and 16,000 masked words, in chunks of 1,024, 4,096 and 16,384 rows
    step       forward, backward and update of 512 texts and 512 pairs: as it is, layers compiled, Triton's norm
    host       three turns of 16 samples, turn by turn and in one pass (benchmarks/host.py)

Each variant's relative error to float32 stands beside its time: one that is wrong is not fast. The first variant of a part is
timed again at the end of the part ("again"): what differs between the two is the machine's. A part is not begun after
`--budget` seconds. --cpu runs everything at a tiny size, to see that it runs; its times mean nothing.

Ratios `PART/VARIANT` are the time of the part's first variant over the variant's, so more is better.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from timing import Clock, Row
from variant_parts import PARTS, Sizes

HERE = Path(__file__).parent


def main() -> None:
    """Run the parts that there is time for, print and write."""
    arguments = _parse()
    began, rows, left_out = time.monotonic(), list[Row](), list[str]()
    device = torch.device("cpu" if arguments.cpu else "cuda")
    sizes = Sizes.tiny() if arguments.cpu else Sizes()
    clock = Clock(device, 1 if arguments.cpu else 10)
    console = Console(width=130)
    torch.manual_seed(0)
    for name in arguments.parts.split(","):
        if time.monotonic() - began > arguments.budget:
            left_out.append(name)
            continue
        found = list(_programs(name, arguments.cpu) if name in PROGRAMS else PARTS[name](clock, sizes))
        rows += found
        console.print(_table(name, found))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if left_out:
        console.print(f"Not begun within {arguments.budget:g} s: {', '.join(left_out)}")
    console.print(machine())
    if arguments.json:
        result = {
            "machine": machine(),
            "rows": [asdict(row) for row in rows],
            "ratios": ratios(rows),
            "left_out": left_out,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def ratios(rows: list[Row]) -> dict[str, float]:
    """Return the time of each part's first variant over those of the others."""
    found, first = {}, dict[str, Row]()
    for row in rows:
        base = first.setdefault(row.part, row)
        if row is not base and not row.part.startswith(("ceilings", "gemm")):
            found[f"{row.part}/{row.name}"] = base.seconds / row.seconds
    return found


STEP = ["--peers", "none", "--head-rows", "0", "--precision", "bfloat16", "--device", "cuda"]
STEP += ["--layers", "12", "--width", "768", "--words", "250002", "--samples", "512"]
HOST = ["--device", "cuda", "--precision", "bfloat16", "--width", "768", "--feed-forward", "3072"]
TINY_STEP = [
    "--peers",
    "none",
    "--head-rows",
    "0",
    "--layers",
    "1",
    "--width",
    "64",
    "--words",
    "300",
    "--samples",
    "2",
]
PROGRAMS: dict[str, tuple[dict[str, list[str]], list[str], list[str]]] = {
    "step": (
        {
            "as it is": ["step.py"],
            "compiled": ["step.py", "--kernels", "layers=compiled"],
            "triton norm": ["step.py", "--kernels", "layer_norm=triton"],
            "again": ["step.py"],
        },
        STEP,
        [*TINY_STEP, "--repetitions", "1"],
    ),
    "host": ({"host.py": ["host.py"]}, HOST, ["--layers", "1", "--steps", "1", "--samples", "2"]),
}
"""Part -> (variant -> program and its options; options of the published size; options of a tiny one on a CPU)."""


def _programs(part: str, cpu: bool) -> Iterator[Row]:
    """Yield what programs of this folder measure, each in a process of its own; on a CPU the first variant alone."""
    variants, options, tiny = PROGRAMS[part]
    for name, (program, *own) in list(variants.items())[: 1 if cpu else None]:
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "result.json"
            command = [sys.executable, str(HERE / program), *(tiny if cpu else options), *own, "--json", str(written)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
            for row in json.loads(written.read_text())["rows"]:
                label = name if part == "step" else row["name"]
                yield Row(part, label, row["seconds"], min(row["all_seconds"]))


def _table(part: str, rows: list[Row]) -> Table:
    table = Table("variant", "median, ms", "least, ms", "error to float32", "figures", title=part)
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e}"
        figures = ", ".join(f"{value:,.4g} {unit}" for unit, value in row.figures.items())
        table.add_row(row.name, f"{1000 * row.seconds:.3f}", f"{1000 * row.least_seconds:.3f}", error, figures)
    return table


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join([*PARTS, *PROGRAMS]), help="in this order")
    parser.add_argument("--budget", type=float, default=480, help="seconds after which no part is begun")
    parser.add_argument("--json", type=Path, help="write machine, rows and ratios here")
    parser.add_argument("--cpu", action="store_true", help="everything at a tiny size on a CPU")
    arguments = parser.parse_args()
    unknown = set(arguments.parts.split(",")) - {*PARTS, *PROGRAMS}
    if unknown:
        parser.error(f"--parts {', '.join(sorted(unknown))}: there are {', '.join([*PARTS, *PROGRAMS])}")
    return arguments


if __name__ == "__main__":
    main()
