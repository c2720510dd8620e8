"""One experiment on one GPU: what each way to compute the parts of a step takes there. In one command, under nine minutes.

    python benchmarks/variants.py [--parts step,norm,...] [--budget 480] [--json FILE] [--cpu]

The parts, in the order in which they are run: what decides most comes first.

    ceilings       copies, one large multiplication, pinned memory to the GPU, an empty launch: what all else is compared with
    gemm           the linear layers of the published size at 139,520 slots: forward, and both gradients
    step           forward, backward and update of 512 texts and 512 pairs: as it is, layers compiled, Triton's kernels, ...; at
                   last beside `transformers` with logits of masked words alone, as it is and compiled
    host           three turns of 16 samples, turn by turn, in one pass, and without DeepSpeed; layers as they are, and compiled
                   (benchmarks/host.py)
    norm           dropout, residual and layer norm: torch, torch.compile, Triton, with and without dropout; used by one
                   operation, and by two, whose gradients are added: by autograd, or inside Triton's kernel
    head           the word loss at 787, 5,069 and 16,000 masked words: other chunks, and the vocabulary padded to 64 or 128
    word_gradient  the word weight's gradient, summed in float32 slice by slice or by the multiplication
    attention      sequences of a pair turn: torch's variable-length kernel, as they come and sorted by length; Triton's, which
                   writes all gradients packed; flash-attn's and FlashAttention 4, where they are installed; grouped; and
                   what flash attention's backward does for its float32 sums alone
    gelu           both halves of feed-forward with all gradients: torch, torch.compile, Triton's GELU with bias, and QuACK's
                   multiplications with GELU inside, where it is installed
    gather         slots from words and regions, and a head's rows: by index, by index_select, by embedding
    wire           features of a pair turn to the GPU in float32, float16 and bfloat16

Each variant's relative error to float32 stands beside its time: one that is wrong is not fast. The first variant of a part is
timed again at the end of the part ("again"): what differs between the two is the machine's. After `--budget` seconds no
variant is begun, and a program is ended: both are named as left out. A variant that cannot run here, such as one of a package
that is not installed, is named with its reason. So is one that fails (memory, a compiler); it ends no other, and the exit
code is then 1. FILE is written anew after each variant. --cpu runs everything at a tiny size, to see that it runs; its times
mean nothing.

Ratios `PART/VARIANT` are the time of the part's first variant over the variant's, so more is better.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from timing import Clock, Failed, Missing, Row
from variant_parts import PARTS, Sizes

from m3p.atomic import write_text
from m3p.kernels.choice import CANDIDATES
from m3p.kernels.obstacles import Situation
from m3p.model.flops import FORMULA

HERE = Path(__file__).parent


@dataclass
class Found:
    """What is known by now."""

    rows: list[Row] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Parts and variants for which there was no time."""

    def add(self, one: Row | Failed | Missing, console: Console) -> None:
        """Keep an outcome; one without times is printed at once."""
        if isinstance(one, Row):
            self.rows.append(one)
            return
        (self.failed if isinstance(one, Failed) else self.missing).append(one)  # type: ignore[arg-type]
        how = "failed" if isinstance(one, Failed) else "cannot run here"
        console.print(f"{one.part}, {one.name}: {how}: {one.why}", markup=False)


class OutOfTimeError(Exception):
    """The budget is spent; says what was not measured for it."""


def main() -> None:
    """Run the parts that there is time for; print each, and write after each variant. Ctrl-C ends it with what is known."""
    arguments = _parse()
    end, found, console = time.monotonic() + arguments.budget, Found(), Console(width=130)
    torch.manual_seed(0)
    _write(arguments, found)  # a file that cannot be written is said before anything is measured
    parts, stopped = arguments.parts.split(","), False
    for name in parts:
        if stopped or time.monotonic() > end:
            found.left_out.append(name)
            continue
        before = len(found.rows)
        try:
            for one in _measure(name, arguments.cpu, end):
                found.add(one, console)
                _write(arguments, found)
                if time.monotonic() > end:
                    raise OutOfTimeError(f"what follows {one.name} in {name}, if anything")
        except OutOfTimeError as error:
            found.left_out.append(str(error))
        except KeyboardInterrupt:
            found.left_out.append(f"the rest of {name}, which was stopped")
            stopped = True
        rows = found.rows[before:]
        for part in dict.fromkeys(row.part for row in rows):
            console.print(_table(part, [row for row in rows if row.part == part]))
    _end(arguments, found, stopped, console)


def _end(arguments: argparse.Namespace, found: Found, stopped: bool, console: Console) -> None:
    """Say what was left out or failed; raises SystemExit where something failed, or was stopped."""
    if found.left_out:
        console.print(f"Not measured (budget: {arguments.budget:g} s): {', '.join(found.left_out)}")
        _write(arguments, found)
    console.print(f"MFU: {FORMULA}", machine(), sep="\n")
    if found.failed:
        names = ", ".join(f"{one.part}/{one.name}" for one in found.failed)
        raise SystemExit(f"{len(found.failed)} variant(s) failed: {names}")
    if stopped:
        raise SystemExit(130)


def _measure(part: str, cpu: bool, end: float) -> Iterator[Row | Failed | Missing]:
    """Yield the variants of a part; where its data cannot be made, that alone. `end` is on the monotonic clock."""
    if part in PROGRAMS:
        yield from _programs(part, cpu, end)
        return
    device = torch.device("cpu" if cpu else "cuda")
    try:
        yield from PARTS[part](Clock(device, 1 if cpu else 10), Sizes.tiny() if cpu else Sizes())
    except Exception as error:
        yield Failed(part, "its data", f"{type(error).__name__}: {error}".splitlines()[0][:300])
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _write(arguments: argparse.Namespace, found: Found) -> None:
    """Write what is known by now, where that is asked for: what was measured on what, and how MFU is counted."""
    if arguments.json is None:
        return
    result = {
        "machine": machine(),
        "mfu_formula": FORMULA,
        "sizes": asdict(Sizes.tiny() if arguments.cpu else Sizes()),
        "precision": "float32" if arguments.cpu else "bfloat16",
        "programs": {part: [*of[2 if arguments.cpu else 1]] for part, of in PROGRAMS.items()},
        **asdict(found),
        "ratios": ratios(found.rows),
    }
    write_text(arguments.json, json.dumps(result, indent=1) + "\n", durable=False)


def ratios(rows: list[Row]) -> dict[str, float]:
    """Return the time of each part's first variant over those of the others."""
    found, first = {}, dict[str, Row]()
    for row in rows:
        base = first.setdefault(row.part, row)
        if row is not base and row.part not in ("ceilings", "gemm"):
            found[f"{row.part}/{row.name}"] = base.seconds / row.seconds
    return found


STEP = ["--peers", "none", "--head-rows", "0", "--precision", "bfloat16", "--device", "cuda"]
STEP += ["--layers", "12", "--width", "768", "--words", "250002", "--samples", "512", "--repetitions", "5"]
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
            "triton norm and gelu": ["step.py", "--kernels", "layer_norm=triton,gelu=triton"],
            "triton attention": ["step.py", "--kernels", "attention=triton"],
            "torch word loss": ["step.py", "--kernels", "word_head=torch"],
            "grouped attention": ["step.py", "--kernels", "attention=grouped"],
            "FlashAttention 4": ["step.py", "--kernels", "attention=fa4"],
            "QuACK's feed-forward": ["step.py", "--kernels", "gelu=quack"],
            "again": ["step.py"],
            "beside transformers": ["step.py", "--peers", "masked"],
            "beside transformers, compiled": ["step.py", "--peers", "masked", "--compile-peers"],
        },
        STEP,
        [*TINY_STEP, "--repetitions", "1"],
    ),
    "host": (
        {"": ["host.py"], "compiled": ["host.py", "--kernels", "layers=compiled"]},
        HOST,
        ["--layers", "1", "--steps", "1", "--samples", "2"],
    ),
}
"""Part -> (variant -> program and its options; options of the published size; options of a tiny one on a CPU)."""


FIGURES = {"teraflops": "TFLOP/s", "mfu": "MFU", "mfu_6nd": "MFU by 6ND", "samples_per_second": "samples/s"}
"""Figures of a program's rows that are shown -> their units."""
FIRST = ("ceilings", "gemm")
"""Parts that take seconds and say what all others can reach at best."""
ORDER = [*FIRST, *PROGRAMS, *(name for name in PARTS if name not in FIRST)]


def _programs(part: str, cpu: bool, end: float) -> Iterator[Row | Failed | Missing]:
    """Yield what programs of this folder measure, each in a process of its own; on a CPU the first variant alone."""
    variants, options, tiny = PROGRAMS[part]
    for name, (program, *own) in list(variants.items())[: 1 if cpu else None]:
        if reason := _missing(own):
            yield Missing(part, name, reason)
            continue
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "result.json"
            command = [sys.executable, str(HERE / program), *(tiny if cpu else options), *own, "--json", str(written)]
            left = max(1.0, end - time.monotonic())
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=left)
            except subprocess.TimeoutExpired:
                raise OutOfTimeError(
                    f"{name or program} in {part} (ended after {left:.0f} s), and what follows it"
                ) from None
            if done.returncode:
                last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
                yield Failed(part, name, f"exit code {done.returncode}: {' '.join(last)[:300]}")
                continue
            for row in json.loads(written.read_text())["rows"]:
                label = name if row["name"] == "ours" else ": ".join(filter(None, (name, row["name"])))
                figures = {unit: row[figure] for figure, unit in FIGURES.items() if figure in row}
                yield Row(part, label, row["seconds"], min(row["all_seconds"]), figures=figures)


def _missing(options: list[str]) -> str | None:
    """Return why the kernels that these options of a program ask for cannot run on this GPU, or None."""
    wanted = [pair.split("=") for option in options if "=" in option for pair in option.split(",")]
    reasons = (CANDIDATES[of][name][1](Situation("cuda", torch.bfloat16)) for of, name in wanted)
    return next(filter(None, reasons), None)


def _table(part: str, rows: list[Row]) -> Table:
    table = Table("variant", "median, ms", "least, ms", "error to float32", "figures", title=part)
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e}"
        figures = ", ".join(f"{value:,.4g} {unit}" for unit, value in row.figures.items())
        table.add_row(row.name, f"{1000 * row.seconds:.3f}", f"{1000 * row.least_seconds:.3f}", error, figures)
    return table


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(ORDER), help="in this order")
    parser.add_argument("--budget", type=float, default=480, help="seconds after which no part is begun")
    parser.add_argument("--json", type=Path, help="write machine, rows and ratios here")
    parser.add_argument("--cpu", action="store_true", help="everything at a tiny size on a CPU")
    arguments = parser.parse_args()
    unknown = set(arguments.parts.split(",")) - {*ORDER}
    if unknown:
        parser.error(f"--parts {', '.join(sorted(unknown))}: there are {', '.join(ORDER)}")
    return arguments


if __name__ == "__main__":
    main()
