"""The DeepSpeed engine: what `training/engine.py` asks for, in every ZeRO stage.

DeepSpeed averages gradients over ranks, so every rank's part of a loss is multiplied by their number.

On a GPU the program waits for the device at these places alone: inside DeepSpeed's step for the gradient norm (and for
overflow in fp16), which the losses come with, and, where attention is `grouped`, for the lengths of a micro-batch. Whether the
step's losses allow an update is decided on the device. Counts and names of pairs come with the turns (training/turns.py).
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor

from m3p.batch import Batch
from m3p.checkpoints.fragment import Fragment, Progress
from m3p.distributed import Ranks
from m3p.errors import UserError
from m3p.joined import Joined, join
from m3p.kernels.choice import KernelsConfig, choose
from m3p.kernels.obstacles import Situation
from m3p.model.m3p import M3P, Outputs
from m3p.objectives.tasks import TASKS
from m3p.optim.optimizer import OptimizerConfig, make_optimizer, set_rate
from m3p.training import hard_negatives
from m3p.training.deepspeed import config as deepspeed_config
from m3p.training.deepspeed import fragments
from m3p.training.deepspeed.bookkeeping import keep_books_once
from m3p.training.deepspeed.gradient_sums import GradientSums, forget_dropped_sums, zero_optimizer_in_stage_1
from m3p.training.deepspeed.norms import take_norms_at_once
from m3p.training.deepspeed.owner_sums import sum_on_owners
from m3p.training.deepspeed.start import adopt_process_group
from m3p.training.deepspeed.views import keep_views
from m3p.training.engine import Update
from m3p.training.gradient_cache import FirstPass, GradientCache
from m3p.training.hard_negatives import TurnCaptions
from m3p.training.losses import StepLosses, TurnLosses
from m3p.training.turns import TurnData, count_pairs

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeedEngine:
    """Trains `model` as the recipe's optimizer section and a file of ds_configs/ say.

    Args:
        model: the network, with its starting weights.
        ds_config: the file of ds_configs/.
        turns_per_step: a step's loss is the mean over them.
        timeout_seconds: bounds DeepSpeed's collectives.
        run: the run folder, of which weights that are offloaded to a drive bear the name; None where none are.

    Raises:
        UserError: settings that are wrong, or cannot run on this device.
    """

    def __init__(
        self,
        model: M3P,
        config: OptimizerConfig,
        kernels: KernelsConfig,
        ds_config: Path,
        ranks: Ranks,
        turns_per_step: int,
        timeout_seconds: float,
        run: Path | None = None,
    ) -> None:
        self._ranks, self._turns_per_step, self._network = ranks, turns_per_step, model
        written = deepspeed_config.read_deepspeed_config(ds_config)
        settings = deepspeed_config.resolve(written, config, ranks.device)
        if run is not None:
            deepspeed_config.keep_apart(settings, run)
        self.precision = deepspeed_config.precision(settings)
        zero = settings.get("zero_optimization", {})
        self._stage: int = zero.get("stage", 0)
        if self._stage == 3 and model.remembers is not None:
            raise UserError(
                "model.remember_texts: with ZeRO 3 all ranks must encode in step, and each remembers other texts; use ZeRO 0 to "
                "2, or set it to false"
            )
        self._sent = settings.get("communication_data_type", "fp32")
        offloaded = zero.get("offload_optimizer", {}).get("device", "none") != "none"
        of_encoder = model.encoder.head_size, model.encoder.attention_dropout, model.encoder.widths
        where = Situation(ranks.device.type, self.precision, self._stage, offloaded, *of_encoder)
        self._kernels = choose(kernels, where)
        model.use(self._kernels)
        self._optimizer = _make_optimizer(model, config, self._kernels["optimizer"].name)
        set_rate(self._optimizer, 0.0)  # ZeRO 0 in half precision takes a step right away, which must not decay weights
        adopt_process_group(ranks, timeout_seconds)
        in_16_bits = self.precision != torch.float32
        self._sums = GradientSums(model) if in_16_bits and self._stage == 0 else None
        with zero_optimizer_in_stage_1():
            self.deepspeed, _, _, _ = deepspeed.initialize(
                model=model, optimizer=self._optimizer, config=settings, dist_init_required=False
            )
        fragments.make_moments(self.deepspeed)
        take_norms_at_once(self.deepspeed.optimizer)
        keep_views(self.deepspeed.optimizer)
        keep_books_once(self.deepspeed.optimizer)
        if deepspeed_config.sums_on_owners(written):
            sum_on_owners(self.deepspeed.optimizer)
        forget_dropped_sums(self.deepspeed.optimizer)
        on_gpu = ranks.device.type == "cuda"
        self._copies = torch.cuda.Stream(ranks.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._cache = GradientCache(model, ranks)
        self._last_loss: Tensor | None = None
        """Of the step's last micro-batch: its backward waits for `step`, which knows all losses."""

    def train_mode(self) -> None:
        """Switch the network to training, with dropout."""
        self.deepspeed.train()

    def turns(self, turns: Sequence[TurnData], losses: StepLosses, last: bool) -> None:
        """Compute a pass of a step; see `Engine.turns`."""
        if len(turns) > 1:
            self._joined(turns, losses, last)
            return
        (data,) = turns
        there = [self._network.look(batch) for batch in self._fetch(data.batches)]
        of_turn = losses.begin(data.turn.objective, data.tasks, data.counts, self._ranks.device)
        cached = self._cache.first_pass(self._forward_alone, there, data.targets, of_turn) if data.targets else None
        matched: list[Batch] = []
        if data.captions is not None:
            assert cached is not None, "hard negatives are drawn by the features of a task over the turn"
            matched = self._hard_pairs(data.batches, there, data.captions, cached, of_turn)
        for number, batch in enumerate([*there, *matched]):
            ends_step = last and number == len(there) + len(matched) - 1
            self._expect_backward(ends_step)
            if cached is not None and number < len(there):
                outputs = self._cache.second_pass(self._forward, batch, number, cached)
            else:
                outputs = self._forward(batch)
            loss, part = self._loss(outputs, batch, of_turn, cached)
            if number < len(there):
                losses.micro_batches.append(part)
            else:
                losses.micro_batches[number - len(there) - len(matched)] += part  # the same samples
            self._backward_or_wait(loss, ends_step)

    def _joined(self, turns: Sequence[TurnData], losses: StepLosses, last: bool) -> None:
        """Compute several turns in one forward and one backward; each has one micro-batch on this rank."""
        batches = self._fetch([batch for data in turns for batch in data.batches])
        joined = join(batches, [{task: self._scale(data, task) for task in data.tasks} for data in turns])
        joined = replace(joined, whole=self._network.look(joined.whole))
        self._expect_backward(last)
        outputs = self._forward(joined)
        loss = sum(outputs.summed.values(), outputs.touch.float())
        for data, part, batch in zip(turns, outputs.parts, batches, strict=True):
            of_turn = losses.begin(data.turn.objective, data.tasks, data.counts, self._ranks.device)
            cached = self._cache.only_pass(part, batch, data.targets, of_turn) if data.targets else None
            mine, finite = self._loss(part, batch, of_turn, cached, outputs.summed)
            losses.micro_batches.append(finite)
            loss = loss + mine
        self._backward_or_wait(loss, last)

    def step(self, share: float, losses: StepLosses, ceiling: float | None) -> Update:
        """End a step; see `Engine.step`."""
        loss, self._last_loss = self._last_loss, None
        assert loss is not None, "a step without a last turn"
        # A loss that is not finite is what DeepSpeed drops an update for, in every stage.
        self._backward(loss * torch.where(losses.accepted(ceiling), 1.0, math.nan))
        rate = set_rate(self._optimizer, share)
        norm = self._plain_norm() if self._stage == 0 and self.precision == torch.float32 else None
        if norm is not None and not math.isfinite(norm):  # the one case in which DeepSpeed does not look
            self.deepspeed.zero_grad()
            return Update(rate, norm, made=False)
        self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm() if norm is None else norm
        return Update(rate, math.nan if norm is None else norm, self.deepspeed.was_step_applied())

    def fragments(self) -> Iterator[Fragment]:
        """Yield this rank's fragments, in the order of the network's parameters; a tied weight comes once."""
        return fragments.fragments(self.deepspeed)

    def parameters(self) -> int:
        """Return the number of parameters of the whole network, frozen ones too."""
        return sum(map(_numel, self.deepspeed.module.parameters()))

    def progress(self) -> Progress:
        """Return the optimizer's progress, for a checkpoint."""
        scaler = self._scaler()
        scale = {name: float(getattr(scaler, name)) for name in _SCALER_FIELDS if hasattr(scaler, name)}
        return Progress(fragments.updates(self.deepspeed), scale)

    def set_progress(self, progress: Progress) -> None:
        """Put back what `progress` returned; a run in another precision keeps its own loss scale."""
        fragments.set_updates(self.deepspeed, progress.updates)
        scaler = self._scaler()
        for name, value in progress.loss_scale.items():
            if hasattr(scaler, name):
                setattr(scaler, name, type(getattr(scaler, name))(value))

    def describe(self) -> dict[str, str]:
        """Return ZeRO stage, precision, kernels and size in words."""
        trained = sum(_numel(p) for p in self.deepspeed.module.parameters() if p.requires_grad)
        return {
            "ZeRO stage": str(self._stage),
            "precision": str(self.precision).removeprefix("torch."),
            "gradient sums": f"float32 over micro-batches, {self._sent} over ranks",
            **{f"kernel of {field}": str(chosen) for field, chosen in self._kernels.items()},
            "trained parameters": f"{trained:,}",
        }

    def _scaler(self) -> Any:
        if self.precision != torch.float16:
            return None
        zero = self.deepspeed.optimizer
        return getattr(zero, "loss_scaler", None) or getattr(zero, "loss_scale_config", None)

    def _hard_pairs(
        self,
        batches: Sequence[Batch],
        there: Sequence[Batch],
        captions: TurnCaptions,
        cached: FirstPass,
        losses: TurnLosses,
    ) -> list[Batch]:
        """Return the micro-batches of matching, on the device, one for each of `batches`; note their terms and their work.

        They are forwarded apart, since the second pass of gradient caching must be of the shape of the first: else dropout
        would drop other units. `there`: the same as `batches`, on the device, whose pictures they show. What is drawn is known
        in the step alone, so this waits for the device and for the other ranks.
        """
        features = cached.features[hard_negatives.embedding_task(cached.features)]
        drawn = [hard_negatives.draw_for(batch, captions, features) for batch in batches]
        found = [hard_negatives.pairs_to_match(batch, captions, of) for batch, of in zip(batches, drawn, strict=True)]
        losses.counts, losses.added = count_pairs(losses.weights, batches, found)
        return [
            replace(new, visual_features=old.visual_features, visual_boxes=old.visual_boxes).to(self._ranks.device)
            for new, old in zip(found, there, strict=True)
        ]

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

    def _forward(self, batch: Batch | Joined) -> Outputs:
        outputs = self.deepspeed(batch)
        assert isinstance(outputs, Outputs)
        return outputs

    def _forward_alone(self, batch: Batch) -> Outputs:
        """Run a forward whose backward may never come."""
        self._expect_backward(False)
        return self._forward(batch)

    def _expect_backward(self, ends_step: bool) -> None:
        """Say whether the backward of the forward that comes next is the last one of its step."""
        self.deepspeed.set_gradient_accumulation_boundary(ends_step)
        if self._sums is not None:
            self._sums.last = ends_step

    def _loss(
        self,
        outputs: Outputs,
        batch: Batch,
        losses: TurnLosses,
        cached: FirstPass | None,
        summed: Collection[str] = (),
    ) -> tuple[Tensor, Tensor]:
        """Return the micro-batch's part of the step's loss, and a number that is finite if all its losses are.

        Tasks in `summed` are left out of the former: the network has put their parts together.
        """
        loss = outputs.touch.float()
        finite = loss.detach()
        for task, output in outputs.tasks.items():
            finite = finite + output.detach().float().sum()
            if TASKS[task].over_turn:
                assert cached is not None
                loss = loss + self._scale(losses, task) * cached.part(task, output, batch.targets[task])
                continue
            total = TASKS[task].loss(output, outputs.targets[task])
            losses.add(task, total.detach())
            if task not in summed:
                loss = loss + self._scale(losses, task) * total
        return loss, finite

    def _scale(self, turn: TurnData | TurnLosses, task: str) -> float:
        """Return the factor of a task's summed loss in the loss of the step."""
        weight = (turn.weights if isinstance(turn, TurnLosses) else turn.tasks)[task]
        scale = weight * self._ranks.world_size
        return scale / (max(turn.counts[task], 1) * self._turns_per_step)

    def _backward_or_wait(self, loss: Tensor, ends_step: bool) -> None:
        """Run the backward of a micro-batch; the last one of a step waits for `step`."""
        if ends_step:
            self._last_loss = loss
        else:
            self._backward(loss)

    def _backward(self, loss: Tensor) -> None:
        self.deepspeed.backward(loss, scale_wrt_gas=False)

    def _plain_norm(self) -> float:
        """Return the gradient norm of stage 0 in float32, of which DeepSpeed reports none."""
        gradients = [p.grad for p in self.deepspeed.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))


def _make_optimizer(model: M3P, config: OptimizerConfig, kernel: str) -> torch.optim.Optimizer:
    """Return AdamW of the implementation `kernel` (kernels/choice.py)."""
    fused = import_module("deepspeed.ops.adam").FusedAdam if kernel == "deepspeed" else None
    return make_optimizer(model, config, kernel, fused)


def _numel(parameter: Any) -> int:
    """Return the number of elements of a parameter, of which ZeRO 3 leaves an empty tensor in place."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
