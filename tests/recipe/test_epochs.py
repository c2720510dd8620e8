"""Epochs become steps as a recipe is loaded, from the samples that its sources hold."""

from pathlib import Path

import pytest

from m3p.errors import UserError
from m3p.recipe.load import dump_recipe, load_recipe

PAIRS = ["run.steps=null", "objectives.multilingual_text.weight=0"]
"""Two objectives of 30 samples, 7 a turn, one turn each a step."""


@pytest.mark.parametrize(
    ("epochs", "more", "steps"),
    [
        ("1", [], 5),
        ("2", [], 9),
        ("0.1", ["schedule.warmup_steps=0"], 1),
        ("2", ["objectives.code_switched.weight=2"], 9),
        ("2", ["run.turns_per_step=1"], 18),
        ("1", ["objectives.image_caption.batch_size=2"], 15),
    ],
)
def test_an_epoch_ends_when_every_objective_has_drawn_all_that_its_sources_hold(
    tiny: Path, capsys: pytest.CaptureFixture[str], epochs: str, more: list[str], steps: int
) -> None:
    recipe = load_recipe(tiny, [*PAIRS, f"run.epochs={epochs}", *more])
    assert (recipe.run.steps, recipe.run.epochs) == (steps, None)
    assert f"run.epochs = {epochs} is run.steps = {steps} (" in capsys.readouterr().err


def test_what_is_recorded_is_steps(tiny: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny, [*PAIRS, "run.epochs=2"])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.epochs=2"], r"run\.epochs = 2 and run\.steps = 20: .* leave one out"),
        (["run.steps=null", "run.epochs=-1"], r"run\.epochs = -1: .*greater than 0"),
        (["run.steps=null", "run.epochs=many"], r"run\.epochs = 'many'"),
        (["run.steps=null"], r"run\.steps"),
        ([*PAIRS, "run.epochs=1", "schedule.warmup_steps=5"], "not below run.steps = 5"),
    ],
)
def test_a_length_that_says_nothing_or_two_things_is_refused(tiny: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(tiny, overrides)
