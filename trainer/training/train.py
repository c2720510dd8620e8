"""The training loop: from a recipe to a trained run."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from trainer.batch import Batch
from trainer.data.cache import Cache
from trainer.data.loader import MicroBatches, load
from trainer.data.order import ORDER_VERSION
from trainer.data.plan import MicroBatchPlan, Plan
from trainer.data.tokenizer import Tokenizer
from trainer.keys import key
from trainer.model.build import build_model
from trainer.objectives.objective import Context, Objective
from trainer.recipe import Recipe
from trainer.training.checkpoint import FORMAT_VERSION, Checkpoints, State, check_resumable, read_state
from trainer.training.distributed import Ranks
from trainer.training.engine import Engine, Losses
from trainer.training.monitor import Monitor
from trainer.training.schedules import share_of_peak
from trainer.training.startup import announce
from trainer.training.stop import Incarnation, StopSignal, ignore_in_worker, write_done, write_stopped


def train(recipe: Recipe, ds_config: Path, ranks: Ranks) -> bool:
    """Train until the run's end, `run.stop_after` or a request to stop; say whether the run is complete.

    Goes on from the newest checkpoint of `run.folder`. Every rank calls it. Raises UserError.
    """
    folder = recipe.run.folder
    folder.mkdir(parents=True, exist_ok=True)
    with StopSignal(folder) as stop:
        objectives = build_objectives(recipe)
        checkpoints = Checkpoints(folder, recipe.run.keep_checkpoints)
        newest = checkpoints.latest()
        plan = recipe.plan()
        engine = _engine(recipe, ds_config, ranks, plan, from_checkpoint=newest is not None)
        now = _state(recipe, engine, ranks, objectives)
        first = 0
        if newest is not None:
            found = read_state(newest)
            check_resumable(newest, found, now)
            checkpoints.load(newest, engine, ranks)
            first = found.step
        announce(recipe, engine, ranks, plan, objectives, first)
        loop = _Loop(recipe, engine, ranks, plan, objectives, checkpoints, now, Incarnation(folder))
        return loop.run(first, stop)


def build_objectives(recipe: Recipe) -> dict[str, Objective]:
    """Build the active objectives, their sources checked. Raises UserError."""
    tokenizer, data = Tokenizer(recipe.tokenizer_folder), recipe.data
    cache = Cache(data.cache_folder, data.cache_bytes) if data.cache_folder else None
    return {
        name: config.build(Context(name, recipe.run.seed, tokenizer, recipe.visual, data.window, cache))
        for name, config in recipe.active_objectives.items()
    }


class _Loop:
    """Steps, figures, checkpoints, stops."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        ranks: Ranks,
        plan: Plan,
        objectives: dict[str, Objective],
        checkpoints: Checkpoints,
        state: State,
        incarnation: Incarnation,
    ) -> None:
        self._recipe, self._engine, self._ranks, self._plan = recipe, engine, ranks, plan
        self._objectives, self._checkpoints, self._state = objectives, checkpoints, state
        self._incarnation = incarnation
        micro_batch = {name: config.micro_batch for name, config in recipe.active_objectives.items()}
        self._micro_batches = MicroBatchPlan(plan, ranks.world_size, ranks.rank, micro_batch)

    def run(self, first: int, stop: StopSignal) -> bool:
        """Run steps from `first` on; say whether the run is complete."""
        run = self._recipe.run
        last = min(run.steps, run.stop_after or run.steps)
        monitor = Monitor(run.folder, first, run.steps, self._recipe.data.most_bad, self._ranks.rank == 0)
        batches = self._batches(first, last)
        self._engine.deepspeed.train()
        try:
            for step in range(first, last):
                self._step(step, batches, monitor)
                reason = stop.requested(step + 1)
                if reason or step + 1 == last or (step + 1) % run.checkpoint_every == 0:
                    self._save(step + 1)
                if reason and step + 1 < run.steps:
                    write_stopped(run.folder, reason, step + 1)
                    return False
        finally:
            monitor.close()
        if last < run.steps:
            write_stopped(run.folder, "planned", last)
            return False
        write_done(run.folder)
        return True

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
        losses = Losses()
        turns = self._plan.turns(step)
        for number, turn in enumerate(turns):
            began = time.perf_counter()
            of_turn = [next(batches) for _ in range(self._micro_batches.parts[turn.objective])]
            monitor.waited(time.perf_counter() - began)
            tasks = self._objectives[turn.objective].tasks
            self._engine.turn(turn.objective, tasks, of_turn, number == len(turns) - 1, losses)
            monitor.saw(turn.objective, of_turn)
        share = share_of_peak(step, self._recipe.run.steps, self._recipe.schedule)
        rate, norm = self._engine.step(share)
        means = losses.means()
        monitor.step(step + 1, means, self._total(means), rate, norm)

    def _total(self, means: dict[str, float]) -> float:
        """Return the weighted sum of the losses: what the step minimised, objectives in equal parts."""
        return sum(
            self._objectives[name.split("/")[0]].tasks[name.split("/")[1]] * mean for name, mean in means.items()
        )

    def _save(self, step: int) -> None:
        self._incarnation.check()
        self._checkpoints.save(self._engine, self._ranks, self._state.model_copy(update={"step": step}))


def _engine(recipe: Recipe, ds_config: Path, ranks: Ranks, plan: Plan, from_checkpoint: bool) -> Engine:
    vocabulary = Tokenizer(recipe.tokenizer_folder).size
    model = build_model(
        recipe.model, vocabulary, recipe.visual, recipe.tasks, recipe.run.seed, load=not from_checkpoint
    )
    torch.manual_seed(key("dropout", recipe.run.seed, ranks.rank))  # the one choice that belongs to a rank
    return Engine(model, recipe.optimizer, ds_config, ranks, plan.turns_per_step)


def _state(recipe: Recipe, engine: Engine, ranks: Ranks, objectives: dict[str, Objective]) -> State:
    data = {
        f"objectives.{name}.sources: {source.folder}": "-".join(
            shard.fingerprint[:8] for shard in source.manifest.shards[:8]
        )
        for name, objective in objectives.items()
        for source in objective.mix.sources
    }
    return State(
        format_version=FORMAT_VERSION,
        step=0,
        ranks=ranks.world_size,
        stage=engine.stage,
        precision=str(engine.precision).removeprefix("torch."),
        order_version=ORDER_VERSION,
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        data=data,
    )
