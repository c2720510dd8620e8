"""The best checkpoint by a validation figure, with an engine that computes nothing and figures that are told."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from m3p.checkpoints.files import step_of
from m3p.checkpoints.selection import Scored, best_checkpoint, read_selection
from m3p.errors import UserError
from m3p.recipe.load import load_recipe
from tests.training.fake_engine import FakeEngine
from tests.training.test_loop import Run

pytestmark = pytest.mark.usefixtures("alone")
SELECT = ("run.steps=20", "run.select_on=train", "run.checkpoint_every=2", "run.keep_checkpoints=1")


class Figures:
    """Scores a checkpoint as `told`, by its step, and notes which it was asked for; each must be there, and whole."""

    def __init__(self, told: Mapping[int, float]) -> None:
        self._told, self.asked = told, list[int]()

    def __call__(self, checkpoint: Path, evaluation: str) -> Scored:
        assert (checkpoint / "state.json").is_file()
        step = step_of(checkpoint)
        self.asked.append(step)
        figure = self._told[step]
        return Scored(
            step=step,
            checkpoint=checkpoint.name,
            evaluation=evaluation,
            scoring="dual",
            mean_recall=figure,
            languages={},
        )


def best_step(folder: Path) -> int:
    best = best_checkpoint(folder / "checkpoints")
    assert best is not None
    assert best.is_dir(), "the best checkpoint is kept"
    return step_of(best)


@pytest.mark.long
def test_the_best_checkpoint_is_kept_and_named(tiny: Path, tmp_path: Path) -> None:
    figures = Figures({2: 10.0, 4: 30.0, 6: 20.0, 8: 30.0})
    run = Run(tiny, tmp_path, FakeEngine(), *SELECT, score=figures)
    assert run.go(8) == (8, None)
    assert not run.loop.ended_early
    assert figures.asked == [2, 4, 6, 8]
    assert best_step(tmp_path) == 4, "of equals the first"
    assert run.steps() == [4, 8], "the newest, and the best"
    lines = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert [(line["step"], line["mean_recall"]) for line in lines] == [(2, 10.0), (4, 30.0), (6, 20.0), (8, 30.0)]


@pytest.mark.long
def test_evaluations_come_at_their_steps_and_at_the_end_of_the_run(tiny: Path, tmp_path: Path) -> None:
    figures = Figures(dict.fromkeys(range(21), 1.0))
    Run(tiny, tmp_path, FakeEngine(), *SELECT, "run.select_every=6", score=figures).go(20)
    assert figures.asked == [6, 12, 18, 20]


@pytest.mark.long
def test_patience_ends_the_run_and_a_further_start_does_not_go_on(tiny: Path, tmp_path: Path) -> None:
    told = {2: 10.0, 4: 30.0, 6: 20.0, 8: 29.0, 10: 99.0}
    run = Run(tiny, tmp_path, FakeEngine(), *SELECT, "run.patience=2", score=Figures(told))
    assert run.go(20) == (8, None)
    assert run.loop.ended_early
    engine, figures = FakeEngine(), Figures(told)
    again = Run(tiny, tmp_path, engine, *SELECT, "run.patience=2", first=8, score=figures)
    assert again.go(20) == (8, None)
    assert again.loop.ended_early
    assert (figures.asked, engine.calls) == ([], [("train",)])
    longer = Run(tiny, tmp_path, FakeEngine(), *SELECT, "run.patience=3", first=8, score=figures)
    assert longer.go(10) == (10, None)
    assert best_step(tmp_path) == 10


@pytest.mark.long
def test_what_a_killed_start_left_undone_is_scored_and_what_it_did_beyond_is_forgotten(
    tiny: Path, tmp_path: Path
) -> None:
    figures = Figures({2: 10.0, 4: 30.0, 6: 40.0})
    Run(tiny, tmp_path, FakeEngine(), *SELECT, "run.keep_checkpoints=9", score=figures).go(6)
    lines = (tmp_path / "selection.jsonl").read_text().splitlines()
    (tmp_path / "selection.jsonl").write_text(lines[0] + "\n")  # killed while it scored step 4
    again = Figures({4: 30.0})
    Run(tiny, tmp_path, FakeEngine(), *SELECT, first=4, score=again).go(4)
    assert again.asked == [4]
    assert best_step(tmp_path) == 4
    (tmp_path / "selection.jsonl").write_text(
        "\n".join(lines) + "\n"
    )  # step 6 was damaged, and training goes on from 4
    Run(tiny, tmp_path, FakeEngine(), *SELECT, first=4, score=again).go(4)
    assert [one.step for one in read_selection(tmp_path)] == [2, 4]
    assert best_step(tmp_path) == 4


def test_a_damaged_selection_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "selection.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"selection\.jsonl cannot be read .*put back a copy, or move it away"):
        Run(tiny, tmp_path, FakeEngine(), *SELECT, score=Figures({}))
    (tmp_path / "selection.jsonl").rename(tmp_path / "away")
    assert Run(tiny, tmp_path, FakeEngine(), *SELECT, score=Figures({}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["run.patience=2"], "patience without select_on"),
        (["run.select_every=2"], "select_every without select_on"),
        (["run.select_on=test"], "run.select_on = test: no evaluation of this name; the recipe has train"),
        (["run.select_on=train", "run.checkpoint_every=4", "run.select_every=6"], "select_every = 6 is no multiple of"),
    ],
)
def test_mistakes_in_the_recipe_are_named(tiny: Path, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(tiny, settings)
