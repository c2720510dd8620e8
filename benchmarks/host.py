"""Host time of a step: what the program itself takes for turns so small that a GPU would wait for it.

    python benchmarks/host.py [--samples 16] [--steps 10] [--json FILE] [--kernels layers=compiled]
                              [--device cuda --precision bfloat16 --width 768 --feed-forward 3072]

A step is three turns as in the published recipe (text, pairs, pairs), by the real engine with ZeRO 1: forward, backward and
update. It is timed turn by turn and with all turns in one pass (recipe field `run.join_turns`); and, as a floor, turn by turn
without engine and DeepSpeed, by torch's AdamW alone. One step of each is taken in turn, in one run. On a CPU the network is
as deep as the published one but thin, so that its time is that of calling operations; all sequences are of one length, so
that attention is one call a layer, as it is on a GPU, and as short as can be. Before anything is timed, all ways must give
the same losses. --kernels names fields of the recipe's section.

Ratio `host_joined`: seconds of a step turn by turn over those in one pass, medians, so more is better.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor

from m3p import distributed
from m3p.batch import Batch, Sequence
from m3p.data.order.passes import Passes
from m3p.data.order.plan import Plan, Stream
from m3p.kernels.choice import KernelsConfig, choose
from m3p.kernels.obstacles import Situation
from m3p.model.build import build_model
from m3p.model.config import ModelConfig
from m3p.model.encoder import EncoderShape
from m3p.model.m3p import M3P, Outputs
from m3p.objectives.tasks import TASKS, choose_tasks
from m3p.objectives.tasks.contrastive import ask_contrast
from m3p.objectives.tasks.masked_regions import ask_regions
from m3p.objectives.tasks.masked_words import ask_words
from m3p.objectives.tasks.matching import ask_match
from m3p.objectives.tasks.task import TurnTask
from m3p.optim.optimizer import OptimizerConfig
from m3p.packing import Packer
from m3p.training.deepspeed.engine import DeepSpeedEngine
from m3p.training.losses import Figures, StepLosses
from m3p.training.turns import Exchange
from m3p.visual.regions import Regions, RegionTokens

WORDS, FEATURES, CLASSES = 300, 32, 8
LENGTH, CAPTION = 3, 2
"""Slots of every sequence, and words of a caption in one with a picture."""
TEXT = {"masked_words": 1.0}
PAIRS = {"masked_words": 1.0, "masked_regions": 1.0, "matching": 1.0, "contrastive": 1.0}
WEIGHTS = {"text": TEXT, "pairs": PAIRS}
WAYS = ("turn by turn", "one pass")
BARE = "turn by turn, no DeepSpeed"


def main() -> None:
    """Check, time and print."""
    arguments = _parse()
    engine, ways = build(arguments, kernels(arguments)), passes(arguments.samples)
    torch.set_num_threads(1)  # here, since a rank takes the cores that are its own when it starts
    batches = [turn_of_text(arguments.samples), turn_of_pairs(arguments.samples), turn_of_pairs(arguments.samples)]
    if arguments.device == "cuda":
        batches = [batch.pin_memory() for batch in batches]  # as the loader gives them
    steps: dict[str, Callable[[], float]] = {
        name: lambda one=one: take_step(engine, one, batches).loss  # type: ignore[misc]
        for name, one in ways.items()
    }
    steps[BARE] = bare(arguments, batches)
    losses = {name: step() for name, step in steps.items()}
    tolerance = 1e-5 if arguments.precision == "float32" else 2e-2
    assert all(abs(loss - losses[WAYS[0]]) < tolerance * losses[WAYS[0]] for loss in losses.values()), losses
    # On a CPU the process' own time: other programs of the machine do not count.
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.steps):
        for name, step in steps.items():
            began = clock()
            step()
            seconds[name].append(clock() - began)
    report(seconds, arguments)
    distributed.finish()
    distributed.leave(0)


def build(arguments: argparse.Namespace, chosen: KernelsConfig | None = None) -> DeepSpeedEngine:
    """Return the engine over the network."""
    ranks = distributed.start(600)
    assert ranks.device.type == arguments.device, f"--device {arguments.device}, but this process has {ranks.device}"
    model = network(arguments)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "zero1.json"
        bf16 = {"enabled": arguments.precision == "bfloat16"}
        settings.write_text(json.dumps({"bf16": bf16, "zero_optimization": {"stage": 1}}))
        engine = DeepSpeedEngine(
            model,
            OptimizerConfig(learning_rate=1e-9),
            chosen or KernelsConfig(),
            settings,
            ranks,
            3,
            timeout_seconds=600,
        )
    engine.train_mode()
    return engine


def network(arguments: argparse.Namespace) -> M3P:
    """Return a network of the published depth; it does not drop, so that all ways give the same losses."""
    width = arguments.width
    shape = EncoderShape(
        layers=arguments.layers,
        width=width,
        heads=max(1, width // 64),
        feed_forward=arguments.feed_forward,
        positions=514,
    )
    config = ModelConfig(shape=shape, tokenizer=Path("unused"), dropout=0.0)
    visual = Regions(kind="regions", feature_size=FEATURES, classes=CLASSES)
    return build_model(config, WORDS, visual, choose_tasks(PAIRS), seed=0)


def kernels(arguments: argparse.Namespace) -> KernelsConfig:
    """Return the recipe's section `kernels`."""
    return KernelsConfig.model_validate(dict(pair.split("=") for pair in arguments.kernels.split(",") if pair))


def bare(arguments: argparse.Namespace, batches: list[Batch]) -> Callable[[], float]:
    """Return a step of the same turns on a network of its own, without engine and DeepSpeed."""
    device, kind, model = torch.device(arguments.device), getattr(torch, arguments.precision), network(arguments)
    of_encoder = model.encoder.head_size, model.encoder.attention_dropout, model.encoder.widths
    model.use(choose(kernels(arguments), Situation(arguments.device, kind, 1, False, *of_encoder)))
    model = model.to(device, kind).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-9, fused=True)

    def step() -> float:
        losses = []
        for batch in batches:
            there = batch.to(device)
            loss = _mean_losses(model(there), there)
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        return float(torch.stack(losses).sum()) * len(WEIGHTS) / len(batches)  # as losses.py adds up objectives

    return step


def _mean_losses(outputs: Outputs, batch: Batch) -> Tensor:
    """Return the sum over tasks of the mean loss of a turn in one micro-batch."""
    total = outputs.touch
    for name, output in outputs.tasks.items():
        task, targets = TASKS[name], batch.targets[name]
        count = task.count(targets)
        whole = task.turn_targets(count, [targets]) if isinstance(task, TurnTask) else targets
        total = total + task.loss(output.float(), whole) / count
    return total


def passes(samples: int) -> dict[str, Passes]:
    """Return the passes of a step in both ways."""
    plan = Plan([Stream("text", 1, samples), Stream("pairs", 2, samples)], None)
    return dict(zip(WAYS, [Passes(plan), Passes(plan, dict.fromkeys(("text", "pairs"), Fraction(1, 3)))], strict=True))


def take_step(engine: DeepSpeedEngine, passes: Passes, batches: list[Batch]) -> Figures:
    """Take one step on the same micro-batches every time."""
    losses, exchange = StepLosses(), Exchange(WEIGHTS, dict.fromkeys(WEIGHTS, 1))
    coming: Iterator[Batch] = iter(_in_order(passes, batches))
    for plan in passes.of_step(1):
        data = exchange.take(plan, coming)
        engine.turns(data.turns, losses, data.last)
    update = engine.step(0.0, losses, None)
    assert update.made
    return losses.figures()


def _in_order(passes: Passes, batches: list[Batch]) -> list[Batch]:
    """Return the micro-batches in the order of the step's turns: text where text is wanted, pairs where pairs are."""
    text, *pairs = batches
    turns = [turn for plan in passes.of_step(1) for turn in plan.turns]
    return [text if turn.objective == "text" else pairs.pop() for turn in turns]


def turn_of_text(samples: int) -> Batch:
    """Pack passages with masked words."""
    packer = Packer(FEATURES)
    for seed in range(samples):
        tokens = np.random.default_rng(seed).integers(4, WORDS, LENGTH)
        _, first = packer.add(Sequence(tokens))
        ask_words(packer, first + np.arange(1, 2), tokens[1:2])
    return packer.finish(samples)


def turn_of_pairs(samples: int) -> Batch:
    """Pack pairs: captions alone, pictures alone, and both in one sequence with words and regions masked."""
    packer, rng = Packer(FEATURES), np.random.default_rng(0)
    captions = [rng.integers(4, WORDS, LENGTH) for _ in range(samples)]
    texts = [packer.add(Sequence(tokens))[0] for tokens in captions]
    alone = [Sequence(np.zeros(1, np.int64), _regions(rng, LENGTH - 1)) for _ in range(samples)]
    pictures = [packer.add(sequence)[0] for sequence in alone]
    names = [str(number) for number in range(samples)]
    ask_contrast(
        packer, range(texts[0], texts[-1] + 1), range(pictures[0], pictures[-1] + 1), np.arange(samples), names, names
    )
    for number, tokens in enumerate(captions):
        shown, places = _regions(rng, LENGTH - CAPTION), np.arange(1)
        joint, first = packer.add(Sequence(tokens[:CAPTION], shown))
        ask_words(packer, first + np.arange(1, 2), tokens[1:2])
        ask_regions(packer, first + CAPTION + places, [(shown, places)])
        ask_match(packer, range(joint, joint + 1), bool(number % 2))
    return packer.finish(samples)


def _regions(rng: np.random.Generator, count: int) -> RegionTokens:
    corner = rng.random((count, 2), np.float32) / 2
    features = rng.standard_normal((count, FEATURES), np.float32)
    return RegionTokens(features, np.concatenate([corner, corner + 0.4], 1), rng.integers(CLASSES, size=count))


def report(seconds: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    """Print the times, and write them where that is asked for."""
    rows = [
        {"name": name, "seconds": statistics.median(times), "least_seconds": min(times), "all_seconds": times}
        for name, times in seconds.items()
    ]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {"host_joined": medians[WAYS[0]] / medians[WAYS[1]]}
    title = f"{arguments.samples} samples a turn, {arguments.layers} layers x {arguments.width}, {arguments.precision}"
    table = Table("a step's three turns", "median, ms", "least, ms", title=title)
    for name, times in seconds.items():
        table.add_row(name, f"{1000 * medians[name]:.1f}", f"{1000 * min(times):.1f}")
    Console().print(table, *(f"{name}: {ratio:.3g}" for name, ratio in ratios.items()), machine(), sep="\n")
    if arguments.json:
        setting = {name: value for name, value in vars(arguments).items() if name != "json"}
        result = {"machine": machine(), "setting": setting, "rows": rows, "ratios": ratios}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write machine, rows and ratios here")
    parser.add_argument("--samples", type=int, default=16, help="of a turn")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--feed-forward", type=int, default=8)
    parser.add_argument("--kernels", default="", help="fields of the recipe's section, such as layers=compiled")
    parser.add_argument("--steps", type=int, default=10, help="timed in each way")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
