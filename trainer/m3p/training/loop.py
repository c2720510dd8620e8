"""The training loop: optimizer steps with their verdicts and figures, checkpoints, and stops."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from m3p.batch import Batch
from m3p.checkpoints.files import State
from m3p.checkpoints.save import Checkpoints
from m3p.data.order.plan import Plan, Turn
from m3p.optim.schedules import share_of_peak
from m3p.recipe.recipe import Recipe
from m3p.training.engine import Engine, Update
from m3p.training.losses import Figures, StepLosses
from m3p.training.selecting import Selection
from m3p.training.stop import Reason, RunOwner, StopSignal
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

    def poll(self) -> None:
        """Raise the UserError of a write that failed in the background; all ranks raise at the same call."""
        self._checkpoints.poll()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if any. Raises UserError if it failed."""
        self._checkpoints.finish()


class Loop:
    """Runs the steps of one run.

    Args:
        tasks: objective -> its tasks and their weights in the loss.
        micro_batches: objective -> micro-batches of this rank in one of its turns.
    """

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        plan: Plan,
        tasks: Mapping[str, Mapping[str, float]],
        micro_batches: Mapping[str, int],
        guard: Guard,
        monitor: Monitor,
        watchdog: Watchdog,
        saver: Saver,
        selection: Selection,
    ) -> None:
        self._recipe, self._engine, self._plan = recipe, engine, plan
        self._tasks, self._micro_batches = tasks, micro_batches
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
        with GarbageCollection() as collector:
            while done < last and not reason and not self.ended_early:
                self.step(done + 1, batches)
                done += 1
                collector.step(done)
                self._watchdog.first_step_done()
                self._saver.poll()
                reason = stop.requested(done)
                if reason or done == last or done % self._recipe.run.checkpoint_every == 0:
                    self._save(done)
                    self._select(done)
        with self._watchdog.paused():
            self._saver.finish()
        return done, reason

    def step(self, number: int, batches: Iterator[Batch]) -> None:
        """Take optimizer step `number`, from 1: its turns, the verdict, the update, the figures."""
        step, turns = Step(number), self._plan.turns(number - 1)
        for turn in turns:
            self._turn(step, turn, batches, last=turn is turns[-1])
        figures = step.losses.figures()
        verdict = self._guard.judge(figures)
        self._watchdog.beat(f"step {number}: update")
        update = self._engine.step(self._share_of_peak(number), verdict.apply)
        self._monitor.step(number, step.losses.met(figures.tasks), figures.loss, update.rate, update.norm)
        self._note(step, figures, verdict, update)

    def _turn(self, step: Step, turn: Turn, batches: Iterator[Batch], last: bool) -> None:
        """Take the micro-batches of a turn, and compute on them."""
        where = f"step {step.number}, turn {turn.number} ({turn.objective})"
        self._watchdog.beat(f"{where}: waiting for data")
        began = time.perf_counter()
        of_turn = [next(batches) for _ in range(self._micro_batches[turn.objective])]
        self._monitor.waited(time.perf_counter() - began)
        self._watchdog.beat(f"{where}: computing")
        self._engine.turn(turn.objective, self._tasks[turn.objective], of_turn, step.losses, last)
        step.seen += [(turn, batch.names) for batch in of_turn]
        self._monitor.saw(turn.objective, of_turn)

    def _note(self, step: Step, figures: Figures, verdict: Verdict, update: Update) -> None:
        """Tell the guard how the step ended, and people what was odd in it. Raises UserError: too many steps refused."""
        if update.made:
            if verdict.warning:
                self._monitor.say(f"step {step.number}: {verdict.warning}")
            self._guard.made(figures)
        else:
            reason = verdict.refused or f"gradient not finite (norm {update.norm})"
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
