"""The training loop: optimizer steps with their verdicts and figures, checkpoints, and stops."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from m3p.batch import Batch
from m3p.checkpoints.files import State
from m3p.checkpoints.save import Checkpoints
from m3p.data.order.passes import Passes, PassPlan
from m3p.data.order.plan import Turn
from m3p.distributed import Ranks
from m3p.optim.schedules import share_of_peak
from m3p.recipe.recipe import Recipe
from m3p.training.engine import Engine, Update
from m3p.training.losses import Figures, StepLosses
from m3p.training.selecting import Selection
from m3p.training.stop import Reason, RunOwner, StopSignal
from m3p.training.turns import Exchange, PassData, take_ahead
from m3p.training.watch.garbage_collection import GarbageCollection
from m3p.training.watch.loss_guard import Guard, Verdict
from m3p.training.watch.monitor import Monitor
from m3p.training.watch.watchdog import Watchdog


@dataclass
class Step:
    """What is known of a step before its update."""

    number: int
    """From 1."""
    losses: StepLosses = field(default_factory=StepLosses)
    seen: list[tuple[Turn, list[str]]] = field(default_factory=list)
    """For each micro-batch of this rank, its turn and the names of its samples."""


class Saver:
    """Writes the checkpoints of a run, with what resuming needs besides the weights."""

    def __init__(self, engine: Engine, checkpoints: Checkpoints, owner: RunOwner, state: State, guard: Guard) -> None:
        self._engine, self._checkpoints, self._owner, self._guard = engine, checkpoints, owner, guard
        self._state = state

    def save(self, step: int) -> None:
        """Begin to write a checkpoint after `step`. Every rank calls it. Raises UserError: another job owns the folder."""
        self._owner.check()
        progress = self._engine.progress()
        now = {"step": step, "updates": progress.updates, "loss_scale": dict(progress.loss_scale)}
        self._checkpoints.save(self._engine, self._state.model_copy(update={**now, "guard": self._guard.state()}))

    @property
    def writes(self) -> bool:
        """Whether this rank still writes a checkpoint in the background."""
        return self._checkpoints.writes

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if any. Raises UserError if it failed."""
        self._checkpoints.finish()


class Loop:
    """Runs the steps of one run."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        passes: Passes,
        exchange: Exchange,
        ranks: Ranks,
        guard: Guard,
        monitor: Monitor,
        watchdog: Watchdog,
        saver: Saver,
        selection: Selection,
    ) -> None:
        self._recipe, self._engine, self._passes = recipe, engine, passes
        self._exchange, self._ranks = exchange, ranks
        self._guard, self._monitor, self._watchdog, self._saver = guard, monitor, watchdog, saver
        self._selection = selection
        self.ended_early = False
        """Whether the selection of checkpoints has ended the training."""

    def run(self, batches: Iterator[Batch], first: int, last: int, stop: StopSignal) -> tuple[int, Reason | None]:
        """Run steps until `last` are done, of which `first` were done before, or until `stop` asks for an end.

        `batches` are this rank's micro-batches, in order. A checkpoint is written at the end in either case.
        -> (steps done, why it stopped early or None). Raises UserError.
        """
        done, reason = first, None
        self._engine.train_mode()
        self._select(done)  # a start that was killed may have left it undone
        plans = (one for number in range(first + 1, last + 1) for one in self._passes.of_step(number))
        with (
            GarbageCollection() as collector,
            closing(take_ahead(plans, batches, self._exchange, self._ranks)) as passes,
        ):
            while done < last and not reason and not self.ended_early:
                reason, writes = self.step(done + 1, passes, stop)
                done += 1
                collector.step(done)
                self._watchdog.first_step_done()
                if not writes:
                    self._saver.finish()  # all ranks at once: a write that failed is raised on all of them
                if reason or done == last or done % self._recipe.run.checkpoint_every == 0:
                    self._save(done)
                    self._select(done)
        with self._watchdog.paused():
            self._saver.finish()
        return done, reason

    def step(self, number: int, passes: Iterator[PassData], stop: StopSignal) -> tuple[Reason | None, bool]:
        """Take optimizer step `number`, from 1: its passes, the update, the figures, the verdict.

        -> (why to stop after it or None, whether any rank still writes a checkpoint).
        """
        step = Step(number)
        for plan in self._passes.of_step(number):
            self._pass(step, plan, passes)
        self._watchdog.beat(f"step {number}: update")
        losses = step.losses
        update = self._engine.step(self._share_of_peak(number), losses, self._guard.ceiling(losses.counts()))
        # All figures are read behind one collective, when the update has waited for the device anyway.
        asked = stop.requested(number, self._saver.writes)
        figures, norm = losses.figures(), float(update.norm)
        verdict = self._guard.judge(figures)
        assert verdict.apply or not update.made, (number, figures, verdict)
        self._monitor.added(losses.added())
        self._monitor.step(number, losses.met(figures.tasks), figures.loss, update.rate, norm)
        self._note(step, figures, verdict, update)
        return asked

    def _pass(self, step: Step, plan: PassPlan, passes: Iterator[PassData]) -> None:
        """Take the micro-batches of a pass, and compute on them."""
        turns = ", ".join(f"turn {turn.number} ({turn.objective})" for turn in plan.turns)
        where = f"step {step.number}, {turns}"
        self._watchdog.beat(f"{where}: waiting for data")
        began = time.perf_counter()
        data = next(passes)
        self._monitor.waited(time.perf_counter() - began)
        self._watchdog.beat(f"{where}: computing")
        self._engine.turns(data.turns, step.losses, data.last)
        step.seen += [(of.turn, batch.names) for of in data.turns for batch in of.batches]
        self._monitor.saw(data.seen)

    def _note(self, step: Step, figures: Figures, verdict: Verdict, update: Update) -> None:
        """Tell the guard how the step ended, and people what was odd in it. Raises UserError: too many steps refused."""
        if update.made:
            if verdict.warning:
                self._monitor.say(f"step {step.number}: {verdict.warning}")
            self._guard.made(figures)
        else:
            reason = verdict.refused or f"gradient not finite (norm {float(update.norm)})"
            self._monitor.say(self._guard.skipped(step.number, reason, step.seen, step.losses.micro_batches))

    def _share_of_peak(self, number: int) -> float:
        return share_of_peak(number - 1, self._recipe.run.steps, self._recipe.schedule)

    def _select(self, step: int) -> None:
        """Score the checkpoint of `step` where that is due, once it is written."""
        if self._selection.due(step):
            self._watchdog.beat(f"step {step}: evaluation")
            with self._watchdog.paused():
                self._saver.finish()
                self.ended_early = self._selection.after(step)

    def _save(self, step: int) -> None:
        self._watchdog.beat(f"step {step}: checkpoint")
        with self._watchdog.paused():
            self._saver.finish()
        self._saver.save(step)
