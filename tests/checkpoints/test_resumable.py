from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from m3p.checkpoints.files import FORMAT_VERSION, State
from m3p.checkpoints.resumable import check_resumable
from m3p.errors import UserError
from m3p.fields import MAY_CHANGE
from m3p.recipe.recipe import Recipe
from m3p.recipe.schema import may_change

RECIPE: dict[str, Any] = {
    "run": {"steps": 10, "seed": 0, "folder": "a", "checkpoint_every": 5},
    "model": {"dropout": 0.1, "tokenizer": "t"},
    "data": {"window": 4, "workers": 1},
    "objectives": {"image_caption": {"micro_batch": 4, "batch_size": 8, "sources": [{"path": "x", "weight": 1.0}]}},
    "evaluation": {"dev": {"path": "p"}},
}


def state(recipe: dict[str, Any] | None = None, ranks: int = 2, **data: str) -> State:
    return State(
        format_version=FORMAT_VERSION,
        step=1,
        ranks=ranks,
        order_version=1,
        recipe=recipe or RECIPE,
        data={"s": "1", **data},
    )


def changed(place: str, value: Any) -> dict[str, Any]:
    """Return the recipe with one value changed."""

    def change(node: Any, names: list[str]) -> Any:
        if not names:
            return value
        if isinstance(node, list):
            return [change(one, names[1:]) if number == int(names[0]) else one for number, one in enumerate(node)]
        return {**(node or {}), names[0]: change((node or {}).get(names[0]), names[1:])}

    return change(RECIPE, place.split("."))


FREE = [
    "run.folder", "run.checkpoint_every", "run.keep_every", "run.stall_seconds", "data.workers", "evaluation.dev.path",
    "objectives.image_caption.micro_batch", "objectives.image_caption.sources.0.path", "model.tokenizer",
    "kernels.attention", "objectives.code_switched.switching.dictionary",
]  # fmt: skip
MATTERS = [
    "run.steps", "run.seed", "run.turns_per_step", "model.dropout", "data.window", "objectives.image_caption.batch_size",
    "objectives.image_caption.sources.0.weight", "optimizer.beta1", "objectives.code_switched.switching.word_rate",
    "visual.size", "model.made_up",
]  # fmt: skip


@pytest.mark.parametrize("place", FREE)
def test_what_changes_nothing_that_is_learnt_is_free(place: str) -> None:
    now = state({**RECIPE, "optimizer": {}} if place.startswith("optimizer") else changed(place, "other"), ranks=5)
    assert check_resumable(Path("c"), state(), now, accept=False) == []


@pytest.mark.parametrize("place", MATTERS)
def test_what_matters_is_refused_by_name_and_may_be_accepted(place: str) -> None:
    recipe = {**RECIPE, "optimizer": {"beta1": 0.5}} if place.startswith("optimizer") else changed(place, 77)
    with pytest.raises(UserError, match=place.replace(".", r"\.")) as error:
        check_resumable(Path("c"), state(), state(recipe), accept=False)
    assert "run.accept_changes=true" in str(error.value)
    (line,) = check_resumable(Path("c"), state(), state(recipe), accept=True)
    assert line.startswith(f"{place}: ")


def test_other_data_are_refused_wherever_they_lie() -> None:
    with pytest.raises(UserError, match="content of other: not set then, 2 now"):
        check_resumable(Path("c"), state(), state(other="2"), accept=False)


def test_a_field_that_did_not_exist_then_has_its_default(tiny_recipe: Recipe) -> None:
    now = tiny_recipe.model_dump(mode="json", exclude_none=True)
    assert now["model"]["encode_pictures"] is True
    then = {**now, "model": {name: value for name, value in now["model"].items() if name != "encode_pictures"}}
    assert check_resumable(Path("c"), state(then), state(now), accept=False) == []
    other = {**now, "model": {**now["model"], "temperature": 0.5}}
    with pytest.raises(UserError, match=r"model\.temperature: 0\.5 then"):
        check_resumable(Path("c"), state(other), state(now), accept=False)


def test_fields_of_earlier_versions_are_compared_under_their_names_of_today() -> None:
    pairs = RECIPE["objectives"]["image_caption"]

    def recipe(**fields: int) -> dict[str, Any]:
        return {**RECIPE, "objectives": {"image_caption": {**pairs, **fields}}}

    old, same, other = recipe(most_tokens=32), recipe(max_tokens=32), recipe(max_tokens=64)
    assert check_resumable(Path("c"), state(old), state(same), accept=False) == []
    with pytest.raises(UserError, match=r"objectives\.image_caption\.max_tokens: 32 then, 64 now"):
        check_resumable(Path("c"), state(old), state(other), accept=False)
    assert old == recipe(most_tokens=32), "what a checkpoint says is not changed by reading it"


def test_a_field_that_says_nothing_must_stay() -> None:
    """Whoever adds a field to a recipe and does not think of resuming is on the safe side."""

    class Section(BaseModel):
        new: int = 1

    class Whole(BaseModel):
        section: Section = Section()
        free: Section = Field(Section(), json_schema_extra=MAY_CHANGE)

    assert not may_change(Whole, ["section", "new"])
    assert may_change(Whole, ["free", "new"])
