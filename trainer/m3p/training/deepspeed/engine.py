"""The DeepSpeed engine, and what makes a turn exact on any number of ranks and micro-batches.

A turn's loss is, for each task, the sum over all ranks and micro-batches divided by the global number of terms. DeepSpeed
averages gradients over ranks, so every rank's part is multiplied by their number. A step averages over its turns.

On a GPU the program waits for the device at these places alone: at a step's end for the gradient norm and the losses,
inside DeepSpeed's step for clipping (and for overflow in fp16), and, where attention is `grouped`, for the lengths of a
micro-batch. Counts and names of pairs are known on the CPU and are summed from CPU to CPU.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor

from m3p.batch import Batch
from m3p.distributed import Ranks, all_reduce_sum
from m3p.kernels.choice import KernelsConfig, Situation, choose
from m3p.model.m3p import M3P, Outputs
from m3p.objectives.tasks import TASKS
from m3p.objectives.tasks.contrastive import Contrastive, turn_targets
from m3p.optim.optimizer import OptimizerConfig, make_optimizer, set_rate
from m3p.training.deepspeed import config as deepspeed_config
from m3p.training.deepspeed.fragments import make_moments
from m3p.training.deepspeed.norms import take_norms_at_once


@dataclass
class Losses:
    """Loss sums and counts of a step, by "objective/task"."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    """This rank's part, on the device: reading it early would wait for the GPU."""
    counts: dict[str, int] = field(default_factory=dict)
    """Of all ranks."""
    parts: list[Tensor] = field(default_factory=list)
    """A number of each micro-batch of this rank, finite if its losses are."""

    def add(self, name: str, part: Tensor, count: int = 0) -> None:
        """Add this rank's `part` of a sum, and a global `count` of its terms."""
        self.sums[name] = self.sums[name] + part if name in self.sums else part
        self.counts[name] = self.counts.get(name, 0) + count

    def means(self) -> dict[str, float]:
        """Return the global means: one collective, every rank calls it."""
        if not self.sums:
            return {}
        total = all_reduce_sum(torch.stack(list(self.sums.values())))
        return {name: value / max(self.counts[name], 1) for name, value in zip(self.sums, total.tolist(), strict=True)}


_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Engine:
    """Trains `model` as the recipe's optimizer section and a file of ds_configs/ say."""

    def __init__(
        self,
        model: M3P,
        config: OptimizerConfig,
        kernels: KernelsConfig,
        ds_config: Path,
        ranks: Ranks,
        turns_per_step: int,
    ) -> None:
        self._ranks, self._clip, self._turns_per_step = ranks, config.clip, turns_per_step
        settings = deepspeed_config.resolve(deepspeed_config.read_deepspeed_config(ds_config), config, ranks.device)
        self.precision = deepspeed_config.precision(settings)
        zero = settings.get("zero_optimization", {})
        self.stage: int = zero.get("stage", 0)
        offloaded = zero.get("offload_optimizer", {}).get("device", "none") != "none"
        self.kernels = choose(kernels, Situation(ranks.device.type, self.precision, self.stage, offloaded))
        model.use(self.kernels)
        self.optimizer = make_optimizer(model, config, self.kernels["optimizer"].name)
        set_rate(self.optimizer, 0.0)  # ZeRO 0 in half precision takes a step right away, which must not decay weights
        self.deepspeed, _, _, _ = deepspeed.initialize(
            model=model, optimizer=self.optimizer, config=settings, dist_init_required=False
        )
        make_moments(self.deepspeed)
        take_norms_at_once(self.deepspeed.optimizer)
        on_gpu = ranks.device.type == "cuda"
        self._copies = torch.cuda.Stream(ranks.device) if on_gpu else None  # type: ignore[no-untyped-call]
        # A forward twice over, as the contrastive task needs it, must drop the same units both times.
        self._dropout = drops(model)

    def turn(
        self,
        name: str,
        weights: Mapping[str, float],
        batches: Sequence[Batch],
        allow: Callable[[], bool] | None,
        losses: Losses,
    ) -> None:
        """Forward and backward over this rank's micro-batches of one turn of objective `name`.

        `weights` are its tasks'. Loss sums and counts are added to `losses`. The last turn of a step brings `allow`, which is
        asked when all losses are there; if it says no, `step` makes no update. Every rank calls it for the same turn.
        """
        counts = self._counts(weights, batches)
        kept, gradient = None, None
        names = _names(batches, counts[Contrastive.name]) if Contrastive.name in weights else {}
        batches = self._fetch(batches)
        for task, count in counts.items():  # here, so that the sums stand in one order on all ranks
            losses.add(f"{name}/{task}", torch.zeros((), device=self._ranks.device), count)
        if names:
            kept, gradient = self._contrast(batches, names, f"{name}/{Contrastive.name}", losses)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            self.deepspeed.set_gradient_accumulation_boundary(allow is not None and last)
            outputs = (
                kept.outputs if kept and kept.outputs else self._forward(batch, kept.random[number] if kept else None)
            )
            loss = outputs.touch.float()
            part = loss.detach()
            for task, output in outputs.tasks.items():
                part = part + output.detach().float().sum()
                scale = weights[task] * self._ranks.world_size / (max(counts[task], 1) * self._turns_per_step)
                if task == Contrastive.name:
                    assert gradient is not None
                    loss = loss + scale * (output * gradient[:, batch.targets[task]["rows"]].flatten(0, 1)).sum()
                else:
                    total = TASKS[task].loss(output, batch.targets[task])
                    loss = loss + scale * total
                    losses.add(f"{name}/{task}", total.detach())
            losses.parts.append(part)
            if allow is not None and last and not allow():
                loss = loss * float("nan")  # what DeepSpeed drops an update for, in every stage
            self.deepspeed.backward(loss, scale_wrt_gas=False)

    def step(self, share: float) -> tuple[float, float, bool]:
        """Take the optimizer step at `share` of the peak rates.

        -> (the encoder's rate, gradient norm before clipping, whether the update was made). It is not made where a
        gradient of any rank is not finite.
        """
        rate = set_rate(self.optimizer, share)
        norm = self._plain_norm() if self.stage == 0 and self.precision == torch.float32 else None
        if norm is not None and not math.isfinite(norm):  # the one case in which DeepSpeed does not look
            self.deepspeed.zero_grad()
            return rate, norm, False
        self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm() if norm is None else norm
        return rate, float(norm) if norm is not None else float("nan"), self.deepspeed.was_step_applied()

    def loss_scale(self) -> dict[str, float]:
        """Return the state of fp16's loss scaling, for a checkpoint; empty in other precisions."""
        scaler = self._scaler()
        return {name: float(getattr(scaler, name)) for name in _SCALER_FIELDS if hasattr(scaler, name)}

    def set_loss_scale(self, values: Mapping[str, float]) -> None:
        """Put back what `loss_scale` returned; a run in another precision keeps its own."""
        scaler = self._scaler()
        for name, value in values.items():
            if hasattr(scaler, name):
                setattr(scaler, name, type(getattr(scaler, name))(value))

    def _scaler(self) -> Any:
        if self.precision != torch.float16:
            return None
        zero = self.deepspeed.optimizer
        return getattr(zero, "loss_scaler", None) or getattr(zero, "loss_scale_config", None)

    def _fetch(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return the batches on the device; a GPU copies them beside what it still computes of the turn before."""
        if self._copies is None:
            return [batch.to(self._ranks.device) for batch in batches]
        with torch.cuda.stream(self._copies):
            there = [batch.to(self._ranks.device) for batch in batches]
        computing = torch.cuda.current_stream(self._ranks.device)
        computing.wait_stream(self._copies)

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(computing)  # its memory is not given away before this stream is done with it
            return tensor

        return [batch.map(keep) for batch in there]

    def _counts(self, weights: Mapping[str, float], batches: Sequence[Batch]) -> dict[str, int]:
        """Return the global number of terms of each task in the turn."""
        mine = [sum(TASKS[t].count(b.targets[t]) for b in batches if t in b.targets) for t in weights]
        total = all_reduce_sum(torch.tensor(mine, dtype=torch.int64))
        return dict(zip(weights, total.tolist(), strict=True))

    def _contrast(
        self, batches: Sequence[Batch], names: dict[str, Tensor], name: str, losses: Losses
    ) -> "tuple[_Kept, Tensor]":
        """Take the contrastive loss over the whole turn, and its gradient with respect to all features.

        `names` are those of all pairs of the turn.
        -> (what the second pass needs, gradient [2, pairs, projection]). With one micro-batch its outputs are kept and
        there is no second pass.
        """
        kept, pairs = _Kept([], None), len(names["captions"])
        features: Tensor | None = None
        for batch in batches:
            kept.random.append(_random_state(self._ranks.device) if self._dropout else None)
            with torch.set_grad_enabled(len(batches) == 1):
                self.deepspeed.set_gradient_accumulation_boundary(False)
                # Where the outputs are not kept, no other head has work to do.
                outputs = self.deepspeed(batch if len(batches) == 1 else _only(batch, Contrastive.name))
            kept.outputs = outputs if len(batches) == 1 else None
            if Contrastive.name in outputs.tasks:
                mine = outputs.tasks[Contrastive.name].detach().float().unflatten(0, (2, -1))
                if features is None:
                    features = mine.new_zeros(2, pairs, mine.shape[-1])
                features[:, batch.targets[Contrastive.name]["rows"]] = mine
        features = self._empty_features(pairs) if features is None else features
        # A sum with every other rank's rows zero is a gather, for any split and without padding.
        features = all_reduce_sum(features).requires_grad_()
        with torch.enable_grad():
            targets = {key: name.to(self._ranks.device, non_blocking=True) for key, name in names.items()}
            loss = TASKS[Contrastive.name].loss(features.flatten(0, 1), targets)
            (gradient,) = torch.autograd.grad(loss, features)
        if self._ranks.rank == 0:  # every rank has the whole sum
            losses.add(name, loss.detach())
        return kept, gradient

    def _empty_features(self, pairs: int) -> Tensor:
        """Features of a rank that has no pair of this turn."""
        head: Any = self.deepspeed.module.heads[Contrastive.name]
        return torch.zeros(2, pairs, head.text.out_features, device=self._ranks.device)

    def _forward(self, batch: Batch, random: Tensor | None) -> Outputs:
        if random is not None:
            _set_random_state(random, self._ranks.device)
        outputs = self.deepspeed(batch)
        assert isinstance(outputs, Outputs)
        return outputs

    def _plain_norm(self) -> float:
        """DeepSpeed reports no norm for stage 0 in float32."""
        gradients = [p.grad for p in self.deepspeed.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))


def drops(model: torch.nn.Module) -> bool:
    """Say whether any part of the network drops units at random while it is trained."""
    rates = [getattr(module, name, 0.0) for module in model.modules() for name in ("dropout", "attention_dropout")]
    return any(rate > 0 for rate in rates)


@dataclass
class _Kept:
    """What a contrastive turn's first pass leaves for the second."""

    random: list[Tensor | None]
    """The random state before each micro-batch, so that dropout falls alike."""
    outputs: Outputs | None


def _names(batches: Sequence[Batch], pairs: int) -> dict[str, Tensor]:
    """Return the names of all pairs of a turn, on the CPU: what counts as identical in the contrastive loss."""
    parts = [batch.targets[Contrastive.name] for batch in batches if Contrastive.name in batch.targets]
    return {key: all_reduce_sum(names) for key, names in turn_targets(pairs, parts).items()}


def _only(batch: Batch, task: str) -> Batch:
    """`batch` without what the other tasks ask."""
    return replace(batch, targets={name: of for name, of in batch.targets.items() if name == task})


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
