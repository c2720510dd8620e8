"""The masked-word head over 250,002 words: time and peak memory of the plain form and of ours, forward and backward.

    python benchmarks/head.py [--json FILE] [--rows 1000,2000,4000,8000,16000] [--width 768] [--device cuda]

Each measurement is a process of its own. Peak memory is what the head adds to the weights and rows that stand before it:
logits, their gradient, and the gradient of the weight, which every form must make. `plain` is a linear layer and
cross-entropy over the masked words alone; rows whose plain form would not fit the memory are left out of it, and said so.
Ratios `head_memory_ROWS` are our peak over the plain form's: less is better.
On a CPU ours works chunk by chunk in torch; on a GPU the loss and gradient of a chunk are one Triton kernel ("fused").
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from machine import machine
from rich.console import Console
from rich.table import Table

from m3p.kernels import cross_entropy

WORDS = 250_002
FORMS = ("plain", "chunked", "fused")


def measure(form: str, rows: int, width: int, device: str) -> tuple[float, float]:
    """Run one forward and backward of `form`: -> (seconds, peak GiB above weights and rows). A process measures once."""
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    weight = torch.randn(WORDS, width, device=device, dtype=kind).mul_(0.02).requires_grad_()
    bias = torch.zeros(WORDS, device=device, dtype=kind, requires_grad=True)
    x = torch.randn(rows, width, device=device, dtype=kind, requires_grad=True)
    labels = torch.randint(WORDS, (rows,), device=device)
    kernel = "torch" if form == "chunked" else None
    fast = partial(cross_entropy.linear_cross_entropy, kernel=kernel)
    function = cross_entropy.linear_cross_entropy_reference if form == "plain" else fast
    torch.autograd.backward(function(x[:8], weight, bias, labels[:8]))  # starts threads
    seconds = []
    for _ in range(1 if device == "cpu" else 6):  # on a GPU the first compiles, and loads what it multiplies with
        weight.grad = bias.grad = x.grad = None
        before = _memory(device, peak=False)
        began = time.perf_counter()
        torch.autograd.backward(function(x, weight, bias, labels))
        peak = _memory(device, peak=True)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[-5:]), peak - before


def _memory(device: str, peak: bool) -> float:
    """Return GiB in use, or their peak; asking for the former starts the peak anew."""
    if device == "cuda":
        torch.cuda.synchronize()
        if peak:
            return torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**30
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is in use (man proc)
    name = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**20


def in_process(form: str, rows: int, width: int, device: str, threads: int) -> tuple[float, float]:
    """As `measure`, in a process of its own."""
    options = ["--one", form, "--rows", str(rows), "--width", str(width), "--device", device, "--threads", str(threads)]
    done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def head_memory(rows: int, width: int = 768, device: str = "cpu", threads: int = 2) -> float:
    """Return our peak over that of the plain form at `rows` masked words."""
    ours = "chunked" if device == "cpu" else "fused"
    return in_process(ours, rows, width, device, threads)[1] / in_process("plain", rows, width, device, threads)[1]


def fits(rows: int, width: int, device: str) -> bool:
    """Whether the plain form fits: logits, log-probabilities and gradient in float32, and the weight's gradient."""
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return 4 * WORDS * (3 * rows + 2 * width) < 0.8 * free


def main() -> None:
    """Measure all forms and print the table."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    width, device = arguments.width, arguments.device
    sizes = [int(number) for number in arguments.rows.split(",")]
    if arguments.one:
        print(json.dumps(measure(arguments.one, sizes[0], width, device)))
        return
    rows: list[dict[str, object]] = []
    peaks: dict[tuple[str, int], float] = {}
    for size in sizes:
        for form in FORMS if device == "cuda" else FORMS[:2]:
            if form == "plain" and not fits(size, width, device):
                rows.append({"rows": size, "form": form, "seconds": None, "peak_gib": None})
                continue
            seconds, peak = in_process(form, size, width, device, arguments.threads)
            peaks[form, size] = peak
            rows.append({"rows": size, "form": form, "seconds": seconds, "peak_gib": peak})
    ours = "fused" if device == "cuda" else "chunked"
    ratios = {f"head_memory_{s}": peaks[ours, s] / peaks["plain", s] for s in sizes if ("plain", s) in peaks}
    _print(rows, ratios, arguments)
    if arguments.json:
        result = {"machine": machine(), "width": width, "words": WORDS, "rows": rows, "ratios": ratios}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _print(rows: list[dict[str, object]], ratios: dict[str, float], arguments: argparse.Namespace) -> None:
    table = Table("masked words", "form", "seconds", "peak GiB", title=f"{WORDS:,} words x {arguments.width}")
    for row in rows:
        known = row["seconds"] is not None
        figures = (f"{row['seconds']:.3g}", f"{row['peak_gib']:.2f}") if known else ("does not fit", "does not fit")
        table.add_row(f"{row['rows']:,}", str(row["form"]), *figures)
    Console().print(table, *(f"{name}: {ratio:.3g}" for name, ratio in ratios.items()), machine(), sep="\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write machine, rows and ratios here")
    parser.add_argument("--rows", default="1000,2000,4000,8000,16000", help="numbers of masked words")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=FORMS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
