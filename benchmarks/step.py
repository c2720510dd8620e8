"""One training step (forward, backward, AdamW) on mixed lengths: ours against `transformers`, on the same weights.

    python benchmarks/step.py [--json FILE] [--layers 6 --width 384 --words 64000] [--device cuda --precision bfloat16]
                              [--peers none] [--compile-peers] [--kernels layer_norm=triton,...] [--profile FOLDER]

The default size keeps the proportions of the published one: with 64,000 words, masked words cost 6 x 384 the same
share of a step as 250,002 words cost 12 x 768. Before anything is timed, all three must give the same losses.
--peers masked leaves out the peer that makes the logits of every slot, which at 512 samples and 250,002 words do not fit a
GPU; --peers none leaves out both; --compile-peers has torch.compile make the layers of their encoders. --kernels is the
recipe's section; --profile writes a trace (trace.json.gz, for Perfetto) and a table of where the time goes.

Ratios: `step_vs_transformers` and `step_vs_masked_only` are our samples/s over theirs, so more is better; `head_memory`
is our peak over the plain form's at 250,002 words (from `benchmarks/head.py`), so less is better. TFLOP/s and MFU count what the
formula of `trainer/m3p/model/flops.py` counts, for the peers too: the same work, without their padding.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from head import head_memory
from machine import machine
from mixed import caption_batch, text_batch
from peer import Peer
from profiled import activities, write_profile
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from m3p.batch import Batch
from m3p.kernels.choice import KernelsConfig, choose
from m3p.kernels.obstacles import Situation
from m3p.model.build import build_model
from m3p.model.config import ModelConfig
from m3p.model.encoder import EncoderShape
from m3p.model.flops import FORMULA, measure_network
from m3p.model.m3p import M3P
from m3p.objectives.tasks import TASKS, choose_tasks
from m3p.training.watch.throughput import Throughput
from m3p.visual.regions import Regions

FEATURES, CLASSES = 2048, 1600
ASKED = ("masked_words", "masked_regions", "matching")
"""The tasks."""
NAMES = ("ours", "transformers", "transformers, masked only")


def main() -> None:
    """Check, time and print."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    ours, peers = build(arguments)
    models: dict[str, nn.Module] = {NAMES[0]: ours, **peers}
    batches = make_batches(arguments)
    check_equal(models, batches[0])
    seconds = measure(models, batches, arguments)
    rows = [_row(name, times, batches, arguments) for name, times in seconds.items()]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    names = {"step_vs_transformers": NAMES[1], "step_vs_masked_only": NAMES[2]}
    ratios = {ratio: medians[name] / medians[NAMES[0]] for ratio, name in names.items() if name in medians}
    if arguments.head_rows:
        ratios["head_memory"] = head_memory(arguments.head_rows)
    _print(rows, ratios, arguments)
    if arguments.json:
        setting = {k: v for k, v in vars(arguments).items() if k not in ("json", "profile")}
        result = {"machine": machine(), "setting": setting, "mfu_formula": FORMULA, "rows": rows, "ratios": ratios}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.profile:
        record(ours, batches[:2], arguments.profile)


def build(arguments: argparse.Namespace) -> tuple[M3P, dict[str, Peer]]:
    """Return our network and the peers by name, all with the same weights."""
    shape, visual = _shape(arguments), Regions(kind="regions", feature_size=FEATURES, classes=CLASSES)
    config = ModelConfig(shape=shape, tokenizer=Path("unused"), dropout=0.1)
    ours = build_model(config, arguments.words, visual, choose_tasks(ASKED), seed=0)
    kinds = {"all": [False, True], "masked": [True], "none": []}[arguments.peers]
    peers = {NAMES[1 + masked_only]: Peer(ours, shape, arguments.attention, masked_only) for masked_only in kinds}
    if arguments.compile_peers:
        for peer in peers.values():
            peer.compile_layers()
    device, kind = torch.device(arguments.device), getattr(torch, arguments.precision)
    wanted = dict(pair.split("=") for pair in arguments.kernels.split(",") if pair)
    chosen = choose(KernelsConfig.model_validate(wanted), Situation(arguments.device, kind, stage=1))
    ours.use(chosen)
    Console().print(*(f"{field}: {found}" for field, found in chosen.items() if field != "optimizer"), sep="\n")
    return ours.to(device, kind), {name: peer.to(device, kind) for name, peer in peers.items()}


def _shape(arguments: argparse.Namespace) -> EncoderShape:
    width = arguments.width
    return EncoderShape(layers=arguments.layers, width=width, heads=width // 64, feed_forward=4 * width, positions=514)


def throughput(arguments: argparse.Namespace) -> Throughput:
    """Return what counts the operations of a step, as training does."""
    shape, visual = _shape(arguments), Regions(kind="regions", feature_size=FEATURES, classes=CLASSES)
    config = ModelConfig(shape=shape, tokenizer=Path("unused"))
    sizes = measure_network(config, shape, arguments.words, visual, choose_tasks(ASKED))
    return Throughput(sizes, torch.device(arguments.device), getattr(torch, arguments.precision), 1, partly=False)


def make_batches(arguments: argparse.Namespace) -> list[list[Batch]]:
    """Return, for each repetition, the two micro-batches of a step: text, then pairs."""
    rng, device = np.random.default_rng(0), torch.device(arguments.device)
    return [
        [
            text_batch(rng, arguments.samples, arguments.words, FEATURES).to(device),
            caption_batch(rng, arguments.samples, arguments.words, FEATURES, CLASSES).to(device),
        ]
        for _ in range(arguments.repetitions)
    ]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return the sum over tasks of the mean loss."""
    outputs = model(batch)
    tasks = outputs.tasks if isinstance(model, M3P) else outputs
    parts = []
    for task, output in tasks.items():
        targets = batch.targets[task]
        total = TASKS[task].loss(output, targets)
        parts.append(total / TASKS[task].count(targets))
    loss = torch.stack(parts).sum()
    return loss + outputs.touch if isinstance(model, M3P) else loss


def check_equal(models: dict[str, nn.Module], step: list[Batch]) -> None:
    """Assert that all models give the same losses without dropout: they are timed on the same task."""
    for batch in step:
        with torch.no_grad():
            losses = {name: float(loss_of(model.eval(), batch)) for name, model in models.items()}
        wanted = losses[NAMES[0]]
        tolerance = 1e-4 if next(models[NAMES[0]].parameters()).dtype == torch.float32 else 2e-2
        assert all(abs(loss - wanted) < tolerance * wanted for loss in losses.values()), losses


def measure(
    models: dict[str, nn.Module], batches: list[list[Batch]], arguments: argparse.Namespace
) -> dict[str, list[float]]:
    """Time one step of each model in turn, over all repetitions: -> seconds by name."""
    optimizers = {name: torch.optim.AdamW(model.parameters(), 1e-5, fused=True) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    wait: Callable[[], object] = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    for number, step in enumerate([batches[0], *batches]):
        for name, model in models.items():
            model.train()
            wait()
            began = time.perf_counter()
            for batch in step:
                torch.autograd.backward(loss_of(model, batch))
            optimizers[name].step()
            optimizers[name].zero_grad()
            wait()
            if number:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - began)
    return seconds


def record(model: nn.Module, steps: list[list[Batch]], folder: Path) -> None:
    """Profile `steps` without the update."""
    on_gpu = torch.cuda.is_available() and next(model.parameters()).is_cuda
    with torch.profiler.profile(activities=activities(on_gpu), record_shapes=True) as profiler:
        for step in steps:
            for batch in step:
                torch.autograd.backward(loss_of(model, batch))
    write_profile(folder, on_gpu, profiler)


def _row(name: str, times: list[float], batches: list[list[Batch]], arguments: argparse.Namespace) -> dict[str, object]:
    median, counting = statistics.median(times), throughput(arguments)
    tokens = statistics.mean(sum(batch.tokens for batch in step) for step in batches)
    flops = statistics.mean(sum(counting.flops(batch) for batch in step) for step in batches)
    figures = counting.figures(round(flops), round(tokens), median)
    return {
        "name": name,
        "seconds": median,
        "samples_per_second": 2 * arguments.samples / median,
        "tokens_per_second": tokens / median,
        **{figure: figures[figure] for figure in ("teraflops", "mfu", "mfu_6nd") if figure in figures},
        "all_seconds": times,
    }


def _print(rows: list[dict[str, object]], ratios: dict[str, float], arguments: argparse.Namespace) -> None:
    title = (
        f"{arguments.layers} layers x {arguments.width}, {arguments.words:,} words, {arguments.precision}, "
        f"{arguments.samples} texts + {arguments.samples} pairs a step, median of {arguments.repetitions}"
    )
    columns = {"s a step": "seconds", "samples/s": "samples_per_second", "unpadded tokens/s": "tokens_per_second"}
    columns |= {"TFLOP/s": "teraflops"} | ({"MFU": "mfu", "MFU by 6ND": "mfu_6nd"} if "mfu" in rows[0] else {})
    table = Table("model", *columns, title=title, caption=f"Operations: {FORMULA}")
    for row in rows:
        table.add_row(str(row["name"]), *(f"{row[name]:,.4g}" for name in columns.values()))
    console = Console()
    console.print(table, *(f"{name}: {ratio:.3g}" for name, ratio in ratios.items()), machine(), sep="\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write machine, rows and ratios here")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--words", type=int, default=64_000, help="vocabulary")
    parser.add_argument("--samples", type=int, default=24, help="texts, and as many pairs, of a step")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--attention", default="sdpa", help="of transformers: sdpa, flash_attention_2, ...")
    parser.add_argument("--peers", default="all", choices=["all", "masked", "none"], help="who is measured beside ours")
    parser.add_argument("--compile-peers", action="store_true", help="by torch.compile, layer by layer")
    parser.add_argument("--kernels", default="", help="ours: fields of the recipe's section, such as word_head=torch")
    parser.add_argument("--profile", type=Path, help="folder for a trace and a table of where the time goes")
    parser.add_argument("--head-rows", type=int, default=4000, help="masked words of head_memory; 0 leaves it out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
