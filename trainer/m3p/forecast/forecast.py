"""`m3p plan`: memory, step time and MFU of a recipe on GPUs that are not here."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from glob import glob
from math import ceil
from pathlib import Path

import torch
from rich.table import Table

from m3p.console import PlainConsole
from m3p.data.order.plan import micro_batches, split
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.forecast import speed
from m3p.forecast.memory import Setting, activation_memory, contrast_memory, model_memory, setting_of
from m3p.model.build import freeze, network_sizes
from m3p.model.encoder import EncoderShape
from m3p.model.flops import FORMULA, GPUS, Gpu, NetworkSizes, Work, gpu_called
from m3p.model.m3p import M3P
from m3p.model.text_memory import LIMIT
from m3p.objectives.objective import ObjectiveConfig
from m3p.objectives.tasks.contrastive import Contrastive
from m3p.recipe.recipe import Recipe
from m3p.training.deepspeed.config import read_deepspeed_config
from m3p.vocabulary import has_vocabulary

RESERVED = 2.0
"""GiB of a GPU: CUDA context, NCCL, and what the allocator cannot use."""
PROGRAM = 0.49
"""GiB of a rank on a CPU: Python, torch and DeepSpeed, as measured with a network of nothing."""
TRIED = 64
"""Samples of an objective that are read to learn its lengths."""
GIB = 2**30


@dataclass(frozen=True)
class Forecast:
    """What a rank needs and how long a step takes."""

    parameters: dict[str, int]
    memory: dict[str, float]
    """Bytes by part, on one rank."""
    flops: float
    """Of one step, all ranks."""
    seconds: float | None
    """Of one step; None on a CPU."""
    mfu: float | None
    samples: int
    """Of one step."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of a step by what takes them: "computing" and "launching" (Python), which go on side by side; then "sending", and
    "pairs" (the contrastive loss). Computing is that of the rank with the most tokens."""
    read: float = 0.0
    """Bytes a step of stored features that all ranks read, at most: what is hidden in one form of a pair counts again."""

    @property
    def waits(self) -> bool:
        """Whether micro-batches are so small that GPUs wait for Python."""
        return bool(self.parts) and self.parts["launching"] > self.parts["computing"]

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Turns:
    """One objective as the forecast sees it."""

    turns: int
    """In one step."""
    batch_size: int
    micro_batch: int
    sample: Work
    """Mean of one sample."""
    texts: int | None
    """Different texts that it shows; None where that is not known, or each time another one."""


def find_kind(name: str) -> Gpu | None:
    """Return the GPU called `name`, by its driver too, or None for `cpu`. Raises UserError for one that is not known."""
    if name == "cpu":
        return None
    if found := gpu_called(name):
        return found
    raise UserError(f"--kind {name} is not known; known: {', '.join(gpu.name for gpu in GPUS)}, cpu")


class Planner:
    """A recipe and a file of ds_configs/, read once; forecasts for any number of ranks."""

    def __init__(self, recipe: Recipe, ds_config: Path) -> None:
        self.assumptions: list[str] = []
        self._recipe, self._config = self._with_files(recipe), read_deepspeed_config(ds_config)
        recipe = self._recipe
        if not recipe.model.counts_what_is_frozen:
            self.assumptions.append(
                "activations and operations of what model.freeze and freeze_layers keep still are counted as if it were trained; "
                "they are less"
            )
        if recipe.model.remember_texts:
            self.assumptions.append(
                "each text is counted as encoded whenever it is shown; once it is remembered it costs nothing"
            )
        self.sizes = self._sizes()
        network = network_without_weights(recipe, self.sizes)
        self.parameters = count_parameters(network)
        """By part of the network, trained and not."""
        self.trained = sum(one.numel() for one in network.parameters() if one.requires_grad)
        self.frozen_parameters = 0 if recipe.visual is None else recipe.visual.frozen_parameters
        """Parameters that stand apart from the network, in whatever it sees with."""
        plan = recipe.plan()
        served = [turn.objective for turn in plan.turns(0)]
        self.streams = {
            name: Turns(served.count(name), config.batch_size, config.micro_batch, *self._sample(name, config))
            for name, config in recipe.active_objectives.items()
        }

    def _with_files(self, recipe: Recipe) -> Recipe:
        """Return the recipe; where files that its visual source names are not here, with others of a usual size."""
        visual, told = (None, "") if recipe.visual is None else recipe.visual.stand_in()
        if told:
            self.assumptions.append(told)
        return recipe.model_copy(update={"visual": visual})

    def setting(self, ranks: int, kind: Gpu | None) -> Setting:
        """Return what memory depends on, for `ranks` GPUs of `kind`."""
        bf16 = self._config.get("bf16", {}).get("enabled", "auto")
        sixteen = self._config.get("fp16", {}).get("enabled", False) or (kind is not None if bf16 == "auto" else bf16)
        model = self._recipe.model
        device = "cpu" if kind is None else "cuda"
        return setting_of(self._config, ranks, 2 if sixteen else 4, model.dropout > 0, model.recompute, device)

    def forecast(self, setting: Setting, kind: Gpu | None, smaller: float = 1) -> Forecast:
        """Return the forecast; micro-batches are the recipe's divided by `smaller`."""
        still = sum(self.parameters.values()) - self.trained
        memory = model_memory(self.trained, setting, still, self.frozen_parameters)
        if self._recipe.model.remember_texts:
            memory["remembered texts"] = self._remembered(setting)
        largest_of = {
            name: stream.sample * self._largest(stream, setting.ranks, smaller) for name, stream in self.streams.items()
        }
        parts = [
            activation_memory(self.sizes, reduce(Work.__add__, [largest_of[name] for name in group]), setting)
            for group in self._groups(setting.ranks, smaller)
        ]
        largest = max(parts, key=_sum)
        memory |= largest
        if contrasted := self._contrasted():
            pairs = max(stream.batch_size for stream in contrasted)
            memory["contrastive loss"] = contrast_memory(pairs, self.sizes.projection, setting.ranks)
        memory |= {"program": PROGRAM * GIB} if kind is None else {"reserved": RESERVED * GIB}
        flops = sum(
            self.sizes.training_flops(stream.sample) * stream.batch_size * stream.turns
            for stream in self.streams.values()
        )
        samples = sum(stream.batch_size * stream.turns for stream in self.streams.values())
        if kind is None:
            return Forecast(self.parameters, memory, flops, None, None, samples)
        peak = kind.teraflops * 1e12 * setting.ranks
        took = self._times(setting, kind, smaller, flops / peak)
        seconds = max(took["computing"], took["launching"]) + took["sending"] + took["pairs"]
        return Forecast(
            self.parameters, memory, flops, seconds, flops / (peak * seconds), samples, took, self._features_read()
        )

    def advice(self, setting: Setting, kind: Gpu) -> str:
        """Return the smallest change after which it fits."""
        for smaller in (1, 2, 4, 8, 16, 32, 64):
            for recompute in dict.fromkeys((setting.recompute, True)):
                for stage in dict.fromkeys((setting.stage, 2, 3)):
                    changed = replace(setting, stage=max(stage, setting.stage), recompute=recompute)
                    if self.forecast(changed, kind, smaller).total <= kind.memory_gib * GIB:
                        return _say(setting, changed, smaller)
        return (
            "nothing of micro_batch, model.recompute and ZeRO stage is enough: take more GPUs, or offload the optimizer"
        )

    def pace_advice(self, setting: Setting, kind: Gpu) -> str:
        """Return what to raise where Python sets the pace: a rank forwards no more at once than it has of a turn."""
        whole = 1 / max(stream.batch_size for stream in self.streams.values())
        if not self.forecast(setting, kind, whole).waits:
            return "micro-batches are small: raise objectives.*.micro_batch"
        smallest = min(ceil(stream.batch_size / setting.ranks) for stream in self.streams.values())
        return (
            f"a rank has as few as {smallest} samples of a turn, and a larger micro_batch is not enough: raise "
            "objectives.*.batch_size and objectives.*.micro_batch, or take fewer GPUs"
        )

    def _largest(self, stream: Turns, ranks: int, smaller: float) -> int:
        """Samples of the largest micro-batch."""
        micro = ceil(stream.micro_batch / smaller)
        return max(len(part) for part in split(range(stream.batch_size), ranks, 0, micro))

    def _passes(self, ranks: int, smaller: float) -> int:
        """Forwards of a rank in one step."""
        joined = [group for group in self._groups(ranks, smaller) if len(group) > 1]
        parts = sum(
            stream.turns * micro_batches(stream.batch_size, ranks, ceil(stream.micro_batch / smaller))
            for stream in self.streams.values()
        )
        return parts - sum(len(group) - 1 for group in joined)

    def _groups(self, ranks: int, smaller: float) -> list[list[str]]:
        """Return the objectives of the turns of each pass, in order (data/order/passes.py)."""
        passes = self._recipe.passes(ranks, smaller).of_step(1)
        return [[turn.objective for turn in one.turns] for one in passes]

    def _times(self, setting: Setting, kind: Gpu, smaller: float, at_peak: float) -> dict[str, float]:
        """Return the seconds of a step by what takes them; `at_peak` are those that the GPUs' peak would take."""
        longer = (4 / 3 if setting.recompute else 1.0) * (1 + speed.UNEVEN if setting.ranks > 1 else 1.0)
        pairs = [
            stream.turns * speed.pair_seconds(stream.batch_size, self.sizes.projection, setting.ranks, kind)
            for stream in self._contrasted()
        ]
        return {
            "computing": longer * at_peak / speed.efficiency(kind),
            "launching": self._launching(setting.ranks, smaller),
            "sending": self._communication(setting, kind, smaller),
            "pairs": sum(pairs),
        }

    def _contrasted(self) -> list[Turns]:
        """Return the objectives with a contrastive loss."""
        return [stream for stream in self.streams.values() if Contrastive.name in stream.sample.terms]

    def _features_read(self) -> float:
        """Bytes a step of stored features, in 16 bits; 0 where pictures are read, of which the recipe says no size."""
        visual = self._recipe.visual
        if visual is None or visual.needs_pictures:
            return 0.0
        rows = sum(stream.sample.visual_rows * stream.batch_size * stream.turns for stream in self.streams.values())
        return 2.0 * visual.target_size * rows

    def _launching(self, ranks: int, smaller: float) -> float:
        """Seconds a step that Python needs for its micro-batches."""
        return speed.HOST * self.sizes.shape.layers * self._passes(ranks, smaller)

    def _communication(self, setting: Setting, kind: Gpu, smaller: float) -> float:
        """Seconds a step for gradients and weights, as if nothing of it were hidden behind computing."""
        if setting.ranks == 1:
            return 0.0
        passes = self._passes(setting.ranks, smaller)
        # A sum over ranks that all of them get costs two, and one that its owner gets costs one. Stages 0 and 1 reduce once a
        # step, 2 and 3 in every pass.
        sum_costs = 1.0 if setting.stage == 3 or setting.sums_on_owners(self.trained) else 2.0
        reduced = sum_costs * (passes if setting.stage >= 2 else 1)
        gathered = {0: 0.0, 1: 1.0, 2: 1.0, 3: 2.0 * passes}[setting.stage]
        rate = speed.bus_bandwidth(kind, setting.ranks)
        # Stage 3 gathers frozen weights too.
        fetched = sum(self.parameters.values()) if setting.stage == 3 else self.trained
        size = reduced * setting.sent * self.trained + gathered * setting.element * fetched
        return size * (1 - 1 / setting.ranks) / rate

    def _remembered(self, setting: Setting) -> float:
        """Bytes of the states of texts that a rank keeps in the end: of all captions there are, or the limit if not known."""
        known = [stream.texts for stream in self.streams.values()]
        if None in known:
            return float(LIMIT)
        states = sum((stream.texts or 0) * stream.sample.words for stream in self.streams.values())
        return min(LIMIT, states * self.sizes.shape.width * setting.element)

    def _sizes(self) -> NetworkSizes:
        recipe = self._recipe
        folder = recipe.tokenizer_folder
        if recipe.model.initialise is not None and not (folder / "config.json").is_file():
            self.assumptions.append(f"{folder} is not here: the sizes of XLM-R base are assumed")
            config = recipe.model.model_copy(update={"initialise": None, "shape": EncoderShape()})
            return network_sizes(config, 250_002, recipe.visual, recipe.tasks)
        return network_sizes(recipe.model, Tokenizer(folder).size, recipe.visual, recipe.tasks)

    def _sample(self, name: str, config: ObjectiveConfig) -> tuple[Work, int | None]:
        """Return the mean work of a sample, of real ones or of the longest where the data is not here; and `Turns.texts`."""
        from m3p.training.build_objectives import build_objectives

        if not has_vocabulary(self._recipe.tokenizer_folder) or not _here(config):
            self.assumptions.append(f"objectives.{name}: its data is not here; the longest samples are assumed")
            return config.longest_sample(self._recipe.visual), None
        objective = build_objectives(self._recipe)[name]
        positions = range(min(TRIED, config.batch_size))
        mean = Work.of(objective.batch(range(config.batch_size), positions)) * (1 / len(positions))
        captions = [
            source.manifest.captions.get(language, 0)
            for source in objective.mix.sources
            for language in source.languages
        ]
        return mean, None if config.changes_texts else sum(captions)


def network_without_weights(recipe: Recipe, sizes: NetworkSizes) -> M3P:
    """Return the network of a recipe on torch's meta device: its parameters have sizes, and say whether they are trained."""
    with torch.device("meta"):
        model = M3P(recipe.model, sizes.shape, sizes.vocabulary, recipe.visual, recipe.tasks)
    freeze(model, recipe.model)
    return model


def count_parameters(model: M3P) -> dict[str, int]:
    """Return the number of parameters by part; a tied weight counts once."""
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = "words" if name == "text.words.weight" else name.split(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    return parts


PARTS = {
    "computing": "computing",
    "launching": "Python, beside it",
    "sending": "gradients and weights between GPUs",
    "pairs": "contrastive loss",
}


def print_plan(recipe: Recipe, ds_config: Path, ranks: int, kind_name: str, console: PlainConsole) -> bool:
    """Print the forecast; say whether it fits. Raises UserError."""
    kind = find_kind(kind_name)
    planner = Planner(recipe, ds_config)
    setting = planner.setting(ranks, kind)
    found = planner.forecast(setting, kind)
    table = Table(title=f"{recipe.run.folder} on {ranks} x {kind_name}, ZeRO {setting.stage}", show_header=False)
    for part, number in found.parameters.items():
        table.add_row(f"parameters: {part}", f"{number:,}")
    if apart := planner.frozen_parameters:
        table.add_row("parameters: frozen tower", f"{apart:,}")
    table.add_row("trained parameters", f"{planner.trained:,}")
    for part, size in found.memory.items():
        table.add_row(f"memory of a rank: {part}", f"{size / GIB:.2f} GiB")
    table.add_row("memory of a rank", f"{found.total / GIB:.2f} GiB" + (f" of {kind.memory_gib:g}" if kind else ""))
    table.add_row("a step", f"{found.samples:,} samples, {found.flops / 1e12:,.1f} TFLOP")
    if found.seconds is not None and found.mfu is not None:
        table.add_row("predicted step", f"{found.seconds:.3g} s, {found.samples / found.seconds:,.0f} samples/s")
        assert kind is not None
        source = "measured" if kind is speed.MEASURED else f"an estimate, from {speed.EFFICIENCY:.0%} measured"
        computing = f"computing at {speed.efficiency(kind):.0%} of the peak: {source} on an H200"
        table.add_row("predicted MFU", f"{found.mfu:.0%} ({computing})")
        for part, seconds in found.parts.items():
            table.add_row(f"of a step: {PARTS[part]}", f"{1000 * seconds:,.3g} ms")
        if found.read:
            table.add_row("stored features read", f"at most {found.read / found.seconds / 1e9:,.3g} GB/s by all ranks")
        table.add_row("MFU is", FORMULA)
    console.print(table)
    for line in planner.assumptions:
        console.print(f"Note: {line}.", highlight=False)
    if kind is None:
        return True
    if found.waits:
        console.print(f"Python sets the pace, since {planner.pace_advice(setting, kind)}.", highlight=False)
    fits = found.total <= kind.memory_gib * GIB
    console.print("It fits." if fits else f"It does not fit: {planner.advice(setting, kind)}.", highlight=False)
    return fits


def _sum(parts: dict[str, float]) -> float:
    return sum(parts.values())


def _say(setting: Setting, changed: Setting, smaller: int) -> str:
    changes: Iterable[str] = [
        f"divide micro_batch by {smaller}" if smaller > 1 else "",
        "set model.recompute=true" if changed.recompute and not setting.recompute else "",
        f"take ZeRO {changed.stage}" if changed.stage != setting.stage else "",
    ]
    return " and ".join(change for change in changes if change)


def _here(config: ObjectiveConfig) -> bool:
    return all(glob(source.path) for source in config.sources)
