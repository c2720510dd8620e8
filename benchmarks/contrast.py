"""The contrastive loss of many pairs, shared by ranks: time and peak memory of each rank, and the error against one rank alone.

    python benchmarks/contrast.py [--pairs 32768] [--ranks 4] [--size 256] [--no-check] [--json FILE]

The ranks are processes of this machine that meet over gloo. Each holds the features of all pairs, as in training, and computes
the loss and its gradient by the task's own function. Peak memory is what that adds to the process, by the kernel's count of
resident memory. The check computes loss and gradient of all pairs in one process, in chunks and in float64.
"""

import argparse
import json
import socket
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from machine import machine
from torch import Tensor, multiprocessing

from m3p.kernels.pair_cross_entropy import pair_cross_entropy
from m3p.objectives.tasks import TASKS
from m3p.objectives.tasks.contrastive import NAMES_OF_PICTURES, Contrastive
from m3p.objectives.tasks.task import Targets


def make_turn(pairs: int, size: int) -> tuple[Tensor, Targets]:
    """Return features [2, pairs, size] and targets of a turn: each picture has two captions, and some captions are equal."""
    random = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(2, pairs, size, generator=random), dim=-1)
    features[0] *= 20.0
    captions = torch.randint(pairs, (pairs,), generator=random)
    names = dict.fromkeys(NAMES_OF_PICTURES, torch.arange(pairs) // 2)
    return features, {"captions": captions, **names}


def work(rank: int, ranks: int, pairs: int, size: int, port: int, found: Any) -> None:
    """Compute on one rank; put its numbers, its pairs, the loss and its rows of the gradient into `found`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    features, targets = make_turn(pairs, size)
    task = TASKS["contrastive"]
    assert isinstance(task, Contrastive)
    own = torch.arange(rank, pairs, ranks)
    dist.all_reduce(torch.ones(1))  # starts what gloo needs
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is in use (man proc)
    before, began = memory("VmRSS:"), time.perf_counter()
    loss, gradient = task.loss_and_gradient(features, targets, own)
    seconds, peak = time.perf_counter() - began, memory("VmHWM:")
    found[rank] = peak - before, seconds, float(loss), gradient[:, own].numpy()
    dist.destroy_process_group()


def memory(name: str) -> float:
    """Return resident memory, or its peak, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**10


def error(found: list[Any], pairs: int, size: int) -> tuple[float, float]:
    """Return the relative errors of the loss and of the gradient of all ranks against float64."""
    features, targets = make_turn(pairs, size)
    text, image = (one.double().requires_grad_() for one in features)
    pictures = torch.stack([targets[name] for name in NAMES_OF_PICTURES], 1)
    loss = pair_cross_entropy(text, image, targets["captions"], pictures)
    wanted = torch.stack(torch.autograd.grad(loss, (text, image)))
    whole = torch.empty_like(wanted)
    for rank, (_, _, _, rows) in enumerate(found):
        whole[:, rank :: len(found)] = torch.from_numpy(rows).double()
    of_loss = max(abs(one[2] / float(loss) - 1) for one in found)
    return of_loss, float((whole - wanted).norm() / wanted.norm())


def main() -> None:
    """Start the ranks, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=32768, help="pairs of the turn, more than 4,096")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="numbers of a feature")
    parser.add_argument("--no-check", action="store_true", help="leave out the comparison with float64")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with multiprocessing.Manager() as manager:
        by_rank = manager.dict()
        arguments = (options.ranks, options.pairs, options.size, port, by_rank)
        multiprocessing.spawn(work, arguments, options.ranks)  # type: ignore[attr-defined, no-untyped-call]
        found = [by_rank[rank] for rank in range(options.ranks)]
    figures = {
        "machine": machine(),
        "pairs": options.pairs,
        "ranks": options.ranks,
        "size": options.size,
        "peak_mib": [round(one[0]) for one in found],
        "seconds": [round(one[1], 1) for one in found],
        "all_logits_mib": options.pairs**2 * 4 // 2**20,
    }
    if not options.no_check:
        figures["error_of_loss"], figures["error_of_gradient"] = error(found, options.pairs, options.size)
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
