"""Every mistake is listed, once, and nothing that only follows from another one."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from m3p.errors import UserError
from m3p.recipe.load import parse_recipe
from m3p.recipe.recipe import RunConfig
from tests.tiny import tiny_recipe


def mistakes(raw: dict[str, Any], *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse_recipe(raw, "tiny", overrides)
    head, *lines = str(caught.value).splitlines()
    assert head == f"tiny has {len(lines)} mistake(s):"
    return [line.removeprefix("  - ") for line in lines]


@pytest.mark.parametrize("field", sorted(set(RunConfig.model_fields) - {"folder"}))
def test_a_wrong_value_of_run_is_one_mistake(tmp_path: Path, field: str) -> None:
    alone = ["run.steps=null"] if field == "epochs" else []  # one of them says how long the run is
    (line,) = mistakes(tiny_recipe(tmp_path), *alone, f"run.{field}=[no, value]")
    assert line.startswith(f"run.{field} = ")


@pytest.mark.parametrize(
    ("overrides", "starts"),
    [
        # Rules between fields are checked where the fields are right, also beside other mistakes ...
        (
            ("run.seed=-1", "run.stop_after=99999", "schedule.warmup_steps=1000"),
            ("run.seed = -1", "run: stop_after = 99999", "schedule.warmup_steps = 1000"),
        ),
        # ... and never by the default that stands in for a wrong value.
        (("visual={kind: patches, size: 0, patch: 5}",), ("visual.size = 0",)),
        (("visual={kind: drawings}",), ("visual = {'kind': 'drawings'}",)),
        (("run.steps=many", "schedule.warmup_steps=5"), ("run.steps = 'many'",)),
    ],
)
def test_what_follows_from_a_mistake_is_no_mistake(
    tmp_path: Path, overrides: tuple[str, ...], starts: tuple[str, ...]
) -> None:
    found = mistakes(tiny_recipe(tmp_path), *overrides)
    assert len(found) == len(starts), found
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=True)), found


@given(value=st.text() | st.lists(st.integers()) | st.dictionaries(st.text(), st.text()) | st.integers(max_value=-1))
def test_any_wrong_value_gives_one_short_line(value: Any) -> None:
    raw = tiny_recipe(Path("nowhere"))
    raw["run"]["keep_every"] = value
    try:
        parse_recipe(raw, "tiny")
    except UserError as error:
        head, line = str(error).split("\n")
        assert head == "tiny has 1 mistake(s):"
        assert line.startswith("  - run.keep_every")
        assert len(line) < 400


@pytest.mark.parametrize(
    "override",
    [
        "visual.trained=false",
        "model.freeze_layers=true",
        "model.dropout=false",
        "optimizer.learning_rate=true",
        "objectives.image_caption.tasks.matching=true",
        "run.epochs=true",
        "run.steps=true",
    ],
)
def test_true_and_false_are_no_numbers(tmp_path: Path, override: str) -> None:
    """Left to pydantic, `trained: false` is layer 0: a tower that was to be frozen would be trained from its first layer on."""
    raw = tiny_recipe(tmp_path)
    raw["visual"] = {"kind": "tower", "folder": "tower"}
    field, _, value = override.partition("=")
    (line,) = mistakes(raw, *(["run.steps=null"] if field == "run.epochs" else []), override)
    assert line == f"{field} = {value}: want a number, not true or false"


def test_norwegian_is_a_language_and_yes_is_still_true(tmp_path: Path) -> None:
    raw = tiny_recipe(tmp_path)
    name = next(iter(raw["evaluation"]))
    recipe = parse_recipe(
        raw, "tiny", [f"evaluation.{name}.languages=[en, no]", "run.evaluate=no", "run.skip_spikes=on"]
    )
    assert recipe.evaluation[name].languages == ["en", "no"]
    assert (recipe.run.evaluate, recipe.run.skip_spikes) == (False, True)
    assert "'no'" in yaml.safe_dump(["no"]), "what we write is read alike by others"
