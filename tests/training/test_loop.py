"""The training loop around an engine that computes nothing: no launcher, no network."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m3p.batch import Batch
from m3p.checkpoints.files import FORMAT_VERSION, State, read_state
from m3p.checkpoints.save import Checkpoints
from m3p.checkpoints.selection import Scored
from m3p.data.order.passes import Passes
from m3p.distributed import Ranks
from m3p.errors import UserError
from m3p.packing import Packer
from m3p.recipe.load import load_recipe
from m3p.training.engine import Engine
from m3p.training.loop import Loop, Saver
from m3p.training.selecting import Score, Selection
from m3p.training.stop import RunOwner, StopSignal
from m3p.training.turns import Exchange
from m3p.training.watch.loss_guard import Guard
from m3p.training.watch.monitor import Monitor
from m3p.training.watch.watchdog import Watchdog
from tests.launch import metrics
from tests.training.fake_engine import CPU, FakeEngine

pytestmark = pytest.mark.usefixtures("alone")
TASKS = {"multilingual_text": {"masked_words": 1.0}, "image_caption": {"masked_words": 2.0, "matching": 1.0}}
TASKS["code_switched"] = TASKS["image_caption"]
PARTS = {"multilingual_text": 2, "image_caption": 1, "code_switched": 3}


def micro_batches() -> Iterator[Batch]:
    """Yield micro-batches of one sample each, which are named by their number."""
    for number in itertools.count():
        batch = Packer(1).finish(0)
        batch.samples, batch.names = 1, [f"s{number}"]
        yield batch


def never(checkpoint: Path, evaluation: str) -> Scored:
    """Score nothing: these runs choose no checkpoint."""
    raise AssertionError(checkpoint)


class Run:
    """A run of the loop in `folder`, with everything real but the engine and the data."""

    def __init__(
        self, tiny: Path, folder: Path, engine: FakeEngine, *overrides: str, first: int = 0, score: Score = never
    ) -> None:
        self.folder, self.engine = folder, engine
        typed: Engine = engine
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._recipe = load_recipe(tiny, [f"run.folder={folder}", "schedule.warmup_steps=0", *overrides])
        run, ranks = self._recipe.run, Ranks(0, 0, 1, CPU, "python")
        self._monitor = Monitor(folder, 0, run.steps, 1.0, True)
        self._watchdog = Watchdog(folder, 0, 600, 600)
        self.guard = Guard(folder, run.max_skipped, run.spike, run.skip_spikes)
        owner = RunOwner(folder)
        state = State(format_version=FORMAT_VERSION, step=0, ranks=1, order_version=1, recipe={}, data={})
        checkpoints = Checkpoints(folder, owner.name, run.keep_checkpoints, None, ranks)
        saver = Saver(typed, checkpoints, owner, state, self.guard)
        plan = self._recipe.plan()
        selection = Selection(run, ranks, first, score)
        watch = (self.guard, self._monitor, self._watchdog)
        self.loop = Loop(self._recipe, typed, Passes(plan), Exchange(TASKS, PARTS), ranks, *watch, saver, selection)
        self._first = first

    def go(self, last: int, batches: Iterator[Batch] | None = None) -> tuple[int, Any]:
        """Run to step `last`."""
        try:
            with StopSignal(self.folder) as stop:
                return self.loop.run(batches or micro_batches(), self._first, last, stop)
        finally:
            self._monitor.close()
            self._watchdog.close()

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint."""
        return sorted(int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step-*"))


@pytest.mark.long
def test_a_step_is_its_turns_then_one_update(tiny: Path, tmp_path: Path) -> None:
    engine = FakeEngine()
    run = Run(tiny, tmp_path, engine, "run.steps=2")
    assert run.go(2) == (2, None)
    assert engine.calls[0] == ("train",)
    for step in (engine.calls[1:5], engine.calls[5:9]):
        assert sorted(call[1:3] for call in step[:3]) == sorted(PARTS.items())
        assert [call[3] for call in step[:3]] == [False, False, True]
        assert step[3][0::2] == ("step", True)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["losses"]["image_caption/matching"] == 1.0
    assert lines[0]["loss"] == 1.0 + 3.0 + 3.0
    assert lines[0]["gradient_norm"] == 0.5


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "last", "saved"),
    [
        (["run.checkpoint_every=2"], 5, [2, 4, 5]),
        (["run.checkpoint_every=2"], 4, [2, 4]),
        (["run.checkpoint_every=9"], 3, [3]),
        (["run.checkpoint_every=1", "run.keep_checkpoints=2"], 5, [4, 5]),
    ],
)
def test_checkpoints_come_at_their_steps_and_at_the_end(
    tiny: Path, tmp_path: Path, settings: list[str], last: int, saved: list[int]
) -> None:
    run = Run(tiny, tmp_path, FakeEngine(), "run.steps=20", "run.keep_checkpoints=9", *settings)
    assert run.go(last) == (last, None)
    assert run.steps() == saved
    assert read_state(tmp_path / "checkpoints" / f"step-{last:08d}").updates == last


@pytest.mark.long
def test_a_stop_file_ends_the_run_after_its_step_with_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    def and_stop() -> Iterator[Batch]:
        for number, batch in enumerate(micro_batches()):
            if number == 2 * sum(PARTS.values()):
                (tmp_path / "STOP").touch()
            yield batch

    run = Run(tiny, tmp_path, FakeEngine(), "run.steps=20", "run.checkpoint_every=9")
    assert run.go(20, and_stop()) == (3, "file")
    assert run.steps() == [3]


@pytest.mark.long
def test_a_loss_that_is_not_finite_refuses_the_update_and_training_goes_on(tiny: Path, tmp_path: Path) -> None:
    engine = FakeEngine({2: float("nan")})
    run = Run(tiny, tmp_path, engine, "run.steps=3")
    assert run.go(3) == (3, None)
    assert [call[2] for call in engine.calls if call[0] == "step"] == [True, False, True]
    (line,) = [json.loads(text) for text in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert line["step"] == 2
    assert "is nan" in line["reason"]
    assert sum(len(one["samples"]) for one in line["micro_batches"]) == sum(PARTS.values())
    assert metrics(tmp_path)[1]["loss"] is None
    assert read_state(tmp_path / "checkpoints" / "step-00000003").updates == 2


@pytest.mark.long
def test_a_gradient_that_is_not_finite_is_told_from_a_refused_step(tiny: Path, tmp_path: Path) -> None:
    engine = FakeEngine(broken=[2])
    Run(tiny, tmp_path, engine, "run.steps=3").go(3)
    assert [call[2] for call in engine.calls if call[0] == "step"] == [True, True, True]
    (line,) = [json.loads(text) for text in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert (line["step"], line["reason"]) == (2, "gradient not finite (norm nan)")


@pytest.mark.long
def test_too_many_refused_steps_in_a_row_end_the_run(tiny: Path, tmp_path: Path) -> None:
    bad = {step: float("inf") for step in (3, 4, 5)}
    with pytest.raises(UserError, match="3 steps in a row without an update"):
        Run(tiny, tmp_path, FakeEngine(bad), "run.steps=20", "run.max_skipped=3").go(20)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5]


@pytest.mark.long
@pytest.mark.parametrize("skip", [False, True])
def test_a_spike_is_said_or_refused(tiny: Path, tmp_path: Path, skip: bool, capsys: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine({18: 9.0})
    Run(tiny, tmp_path, engine, "run.steps=19", "run.spike=3", f"run.skip_spikes={str(skip).lower()}").go(19)
    refused = [number for number, call in enumerate((c for c in engine.calls if c[0] == "step"), 1) if not call[2]]
    assert refused == ([18] if skip else [])
    said = capsys.readouterr().err
    assert said.count("loss spike: 63, the median of recent steps is 7") == 1
    assert ("step 18 makes no update" in said) == skip


@pytest.mark.long
def test_the_next_owner_of_the_folder_is_not_overwritten(tiny: Path, tmp_path: Path) -> None:
    run = Run(tiny, tmp_path, FakeEngine(), "run.steps=2")
    (tmp_path / "incarnation").write_text("another job\n")
    with pytest.raises(UserError, match="another job has taken over"):
        run.go(2)
    assert run.steps() == []
