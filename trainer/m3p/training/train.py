"""The training loop: from a recipe to a trained run."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from m3p import distributed
from m3p.batch import Batch
from m3p.checkpoints.checkpoint import Checkpoints, load_weights, newest_whole, restore
from m3p.checkpoints.files import FORMAT_VERSION, State, read_state
from m3p.checkpoints.init_from import start_from
from m3p.checkpoints.resumable import check_resumable, fingerprints
from m3p.data.loader.loader import MicroBatches, load
from m3p.data.order.plan import MicroBatchPlan, Plan, Turn
from m3p.data.order.shuffle import ORDER_VERSION
from m3p.data.tokenizer import Tokenizer
from m3p.distributed import Ranks
from m3p.errors import UserError
from m3p.keys import key
from m3p.model.build import build_model, network_sizes
from m3p.objectives.objective import Objective
from m3p.optim.schedules import share_of_peak
from m3p.recipe.recipe import Recipe
from m3p.terminal import warn
from m3p.training.build_objectives import build_objectives
from m3p.training.deepspeed.engine import Engine, Losses
from m3p.training.deepspeed.fragments import updates
from m3p.training.stop import (
    Reason,
    RunOwner,
    StopSignal,
    check_no_stop_file,
    forget_status,
    ignore_in_worker,
    write_stopped,
)
from m3p.training.watch.garbage_collection import GarbageCollection
from m3p.training.watch.loss_guard import Guard
from m3p.training.watch.monitor import Monitor
from m3p.training.watch.startup import announce
from m3p.training.watch.throughput import Throughput
from m3p.training.watch.watchdog import Watchdog

FILES = ("incarnation", "status", "metrics.jsonl", "skipped.jsonl", "recipe.yaml", "environment.json")
"""What a run writes into its folder, beside folders."""


def train(recipe: Recipe, ds_config: Path, ranks: Ranks) -> bool:
    """Train until the run's end, `run.stop_after` or a request to stop; say whether the run is complete.

    Goes on from the newest checkpoint of `run.folder`. Every rank calls it. Of a complete run the caller says `write_done`
    once nothing is left to do. Raises UserError.
    """
    folder = _make_folder(recipe.run.folder)
    check_no_stop_file(folder)
    with StopSignal(folder) as stop:
        objectives = build_objectives(recipe)
        plan = recipe.plan()
        now = _state(recipe, ranks, objectives)
        newest, found = _find(recipe, ranks, now)
        engine = _engine(recipe, ds_config, ranks, plan, newest)
        if newest is not None and found is not None:
            restore(newest, found, engine, ranks)
        first = 0 if found is None else found.step
        announce(recipe, engine, ranks, plan, objectives, first)
        loop = _Loop(recipe, engine, ranks, plan, objectives, now)
        return loop.run(first, stop, {} if found is None else found.guard)


class _Loop:
    """Steps, figures, checkpoints, stops."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        ranks: Ranks,
        plan: Plan,
        objectives: dict[str, Objective],
        state: State,
    ) -> None:
        self._recipe, self._engine, self._ranks, self._plan = recipe, engine, ranks, plan
        self._objectives, self._state = objectives, state
        run = recipe.run
        self._incarnation = RunOwner(run.folder)
        self._checkpoints = Checkpoints(run.folder, self._incarnation.name, run.keep_checkpoints, run.keep_every, ranks)
        self._guard = Guard(run.folder, run.max_skipped, run.spike, run.skip_spikes)
        self._watchdog = Watchdog(run.folder, ranks.rank, run.timeout_seconds, run.stall_seconds)
        micro_batch = {name: config.micro_batch for name, config in recipe.active_objectives.items()}
        costs = {name: objective.costs for name, objective in objectives.items()}
        self._micro_batches = MicroBatchPlan(plan, ranks.world_size, ranks.rank, micro_batch, costs)

    def run(self, first: int, stop: StopSignal, guard: dict[str, Any]) -> bool:
        """Run steps from `first` on, with what the guard remembered; say whether the run is complete."""
        run = self._recipe.run
        last = min(run.steps, run.stop_after or run.steps)
        forget_status(run.folder)
        self._guard.restore(guard)
        monitor = Monitor(
            run.folder, first, run.steps, self._recipe.data.max_bad_share, self._ranks.rank == 0, self._throughput()
        )
        batches = self._batches(first, last)
        self._engine.deepspeed.train()
        reason: Reason | None = None
        done = first
        try:
            with GarbageCollection() as collector:
                while done < last and not reason:
                    self._step(done, batches, monitor)
                    done += 1
                    collector.step(done)
                    self._watchdog.first_step_done()
                    self._checkpoints.poll()
                    reason = stop.requested(done)
                    if reason or done == last or done % run.checkpoint_every == 0:
                        self._save(done)
            with self._watchdog.paused():
                self._checkpoints.finish()
        finally:
            monitor.close()
            self._watchdog.close()
        if done == run.steps:
            return True
        write_stopped(run.folder, reason or "planned", done)
        if distributed.is_main():
            why = {"signal": "a signal", "file": f"the file {run.folder / 'STOP'}", None: "run.stop_after"}[reason]
            warn(f"stopped after step {done}: {why}")
        return False

    def _throughput(self) -> Throughput:
        sizes = network_sizes(self._recipe.model, Tokenizer(self._recipe.tokenizer_folder).size, self._recipe.visual)
        frozen = bool(self._recipe.model.freeze)
        return Throughput(sizes, self._ranks.device, self._engine.precision, self._ranks.world_size, frozen)

    def _batches(self, first: int, last: int) -> Iterator[Batch]:
        return load(
            MicroBatches(self._micro_batches, self._objectives),
            self._micro_batches.first_of_step(first),
            self._micro_batches.first_of_step(last),
            self._recipe.data,
            pin=self._ranks.device.type == "cuda",
            start_worker=ignore_in_worker,
        )

    def _step(self, step: int, batches: Iterator[Batch], monitor: Monitor) -> None:
        """One optimizer step: its turns, the update, the figures."""
        losses, means = Losses(), dict[str, float]()
        turns = self._plan.turns(step)
        seen: list[tuple[Turn, list[str]]] = []
        refused: list[str | None] = [None]

        def allow() -> bool:
            means.update(losses.means())
            refused[0] = self._guard.judge(means, self._total(means))
            return refused[0] is None

        for turn in turns:
            where = f"step {step + 1}, turn {turn.number} ({turn.objective})"
            self._watchdog.beat(f"{where}: waiting for data")
            began = time.perf_counter()
            of_turn = [next(batches) for _ in range(self._micro_batches.parts[turn.objective])]
            monitor.waited(time.perf_counter() - began)
            self._watchdog.beat(f"{where}: computing")
            tasks = self._objectives[turn.objective].tasks
            self._engine.turn(turn.objective, tasks, of_turn, allow if turn is turns[-1] else None, losses)
            seen += [(turn, batch.names) for batch in of_turn]
            monitor.saw(turn.objective, of_turn)
        self._watchdog.beat(f"step {step + 1}: update")
        rate, norm, made = self._engine.step(share_of_peak(step, self._recipe.run.steps, self._recipe.schedule))
        loss = self._total(means)
        monitor.step(step + 1, shown(means, losses.counts), loss, rate, norm)
        if made:
            if spike := self._guard.spike(means, loss):
                monitor.say(f"step {step + 1}: {spike}")
            self._guard.made(means, loss)
        else:
            reason = refused[0] or f"gradient not finite (norm {norm})"
            monitor.say(self._guard.skipped(step + 1, reason, seen, losses.parts))

    def _total(self, means: dict[str, float]) -> float:
        """Return the weighted sum of the losses: what the step minimised, objectives in equal parts."""
        return sum(
            self._objectives[name.split("/")[0]].tasks[name.split("/")[1]] * mean for name, mean in means.items()
        )

    def _save(self, step: int) -> None:
        self._watchdog.beat(f"step {step}: checkpoint")
        self._incarnation.check()
        memory = {"updates": updates(self._engine.deepspeed), "guard": self._guard.state()}
        state = self._state.model_copy(update={"step": step, "loss_scale": self._engine.loss_scale(), **memory})
        with self._watchdog.paused():
            self._checkpoints.finish()
        self._checkpoints.save(self._engine, state)


def shown(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Return the means without those of tasks that met no term in the step, whose mean of nothing is 0."""
    return {name: mean for name, mean in means.items() if counts[name]}


def _make_folder(folder: Path) -> Path:
    """Make the run folder. Raises UserError, on every rank, where nothing can be written there."""
    problem = None
    if distributed.is_main():
        taken = [folder / name for name in FILES if (folder / name).is_dir()]
        if taken:
            problem = f"run.folder = {folder}: {taken[0]} is a folder, where the run keeps a file; move it away"
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            probe = folder / "checkpoints" / ".probe.partial"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            problem = f"run.folder = {folder}: cannot be written ({error}); name another folder, or make room in it"
    problem = distributed.broadcast_object(problem)
    if problem is not None:
        raise UserError(problem)
    return folder


def _find(recipe: Recipe, ranks: Ranks, now: State) -> tuple[Path | None, State | None]:
    """Return the checkpoint to go on from and its state. Raises UserError: another run's, or none is whole."""
    newest, problems = newest_whole(recipe.run.folder, ranks)
    if newest is None:
        if problems:
            lines = "\n".join(f"  - {problem}" for problem in problems)
            raise UserError(
                f"{recipe.run.folder / 'checkpoints'}: no checkpoint is whole:\n{lines}\nPut a copy back to go on, or remove "
                "them to start anew"
            )
        return None, None
    found = read_state(newest)
    changes = check_resumable(newest, found, now, recipe.run.accept_changes)
    if distributed.is_main():
        for line in [
            *(f"not whole: {problem}" for problem in problems),
            *(f"accepted change: {line}" for line in changes),
        ]:
            warn(f"{newest.name}: {line}")
    return newest, found


def _engine(recipe: Recipe, ds_config: Path, ranks: Ranks, plan: Plan, newest: Path | None) -> Engine:
    vocabulary = Tokenizer(recipe.tokenizer_folder).size
    model = build_model(recipe.model, vocabulary, recipe.visual, recipe.tasks, recipe.run.seed, load=newest is None)
    _check_positions(recipe, model.text.positions.num_embeddings)
    if newest is not None:
        load_weights(model, newest)  # now, because DeepSpeed makes its copies of the weights when it starts
    elif recipe.model.weights is not None:
        start_from(model, recipe.model.weights, ranks, recipe.tokenizer_folder)
    torch.manual_seed(key("dropout", recipe.run.seed, ranks.rank))  # the one choice that belongs to a rank
    return Engine(model, recipe.optimizer, recipe.kernels, ds_config, ranks, plan.turns_per_step)


def _check_positions(recipe: Recipe, positions: int) -> None:
    """Raise UserError where texts may be longer than the position table of `model.initialise`."""
    for name, config in recipe.active_objectives.items():
        if config.max_tokens > positions - 2:
            raise UserError(
                f"objectives.{name}.max_tokens = {config.max_tokens}: model.initialise = {recipe.model.initialise} has "
                f"{positions} positions and holds {positions - 2} tokens; lower max_tokens"
            )


def _state(recipe: Recipe, ranks: Ranks, objectives: dict[str, Objective]) -> State:
    return State(
        format_version=FORMAT_VERSION,
        step=0,
        ranks=ranks.world_size,
        order_version=ORDER_VERSION,
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        data=fingerprints(recipe, objectives),
    )
