"""Recipes that nobody meant to write: whatever they hold, they load, or one message says why not."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from m3p.errors import UserError
from m3p.recipe.load import dump_recipe, load_recipe, parse_recipe
from m3p.recipe.recipe import Recipe
from tests.tiny import tiny_recipe

RAW = tiny_recipe(Path("data"))
Place = tuple[Any, ...]


def places(node: Any, at: Place = ()) -> list[Place]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *(place for key, child in inner for place in places(child, (*at, key)))]


PLACES = [place for place in places(RAW) if place]
ODD_PATHS = ["run", "a.b.c", "..", "objectives.", "run.seed.x"]
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 0, 1, 2.5, float("nan"), float("inf"), 10**30, "", "x", "1", [], [1], [[]], {}, {"a": 1}, {1: 2},
     ["en", None], {"path": "p"}, [{"path": "*", "weight": 1}]]
)  # fmt: skip


def put(raw: Any, place: Place, value: Any) -> None:
    for key in place[:-1]:
        if not isinstance(raw, dict | list):
            return
        try:
            raw = raw[key]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(raw, dict) or (isinstance(raw, list) and isinstance(place[-1], int) and place[-1] < len(raw)):
        raw[place[-1]] = value


@pytest.mark.long
@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
def test_any_value_anywhere_loads_or_is_named(changes: list[tuple[Place, Any]]) -> None:
    raw = copy.deepcopy(RAW)
    for place, value in changes:
        put(raw, place, value)
    try:
        recipe = parse_recipe(raw, "strange")
    except UserError as error:
        first, *lines = str(error).splitlines()
        assert first == f"strange has {len(lines)} mistake(s):"
        assert lines
        assert all(line.startswith("  - ") and len(line) > 8 for line in lines), lines
    else:
        assert isinstance(recipe, Recipe)
        again = parse_recipe(yaml.safe_load(dump_recipe(recipe)), "again")
        assert again == recipe


@pytest.mark.long
@settings(max_examples=300)
@given(
    st.sampled_from([".".join(map(str, place)) for place in PLACES] + ODD_PATHS),
    st.text(st.sampled_from("ab1.,:{}[]&*!|-> \n'\"#%@`"), max_size=6),
)
def test_any_override_is_taken_or_named(path: str, value: str) -> None:
    message = ""
    try:
        parse_recipe(copy.deepcopy(RAW), "strange", [f"{path}={value}"])
    except UserError as error:
        message = str(error)
    assert not message or message.startswith(("override ", "strange has "))


def test_a_language_twice_is_refused_wherever_languages_are_listed() -> None:
    """It would count twice in a mix of languages that are each equally likely, and in the mean of an evaluation."""
    raw = copy.deepcopy(RAW)
    raw["objectives"]["image_caption"]["sources"][0]["languages"] = ["en", "en"]
    raw["objectives"]["code_switched"]["switching"]["languages"] = ["de", "fr", "de"]
    raw["evaluation"] = {"dev": {"path": "data", "languages": ["cs", "cs"]}}
    with pytest.raises(UserError) as caught:
        parse_recipe(raw, "strange")
    _, *lines = str(caught.value).splitlines()
    assert all(line.endswith("stands twice in the list; name each once") for line in lines)
    for place in ("sources.0.languages", "switching.languages", "evaluation.dev.languages"):
        assert any(place in line for line in lines), place


@pytest.mark.parametrize("section", ["run", "objectives", "visual"])
def test_a_section_inside_of_itself_is_refused(section: str) -> None:
    """Python can make such a recipe; in YAML an alias would, which is refused before."""
    raw = copy.deepcopy(RAW)
    raw[section]["again"] = raw[section]
    with pytest.raises(UserError, match=f"{section}.again"):
        parse_recipe(raw, "strange")


def test_every_wrong_field_is_reported_once(tmp_path: Path) -> None:
    raw = copy.deepcopy(RAW)
    raw["optimizer"] = {"learning_rate": "fast", "weightdecay": 1}
    raw["schedule"]["warmup_steps"] = -3
    raw["visual"]["feature_size"] = 0
    raw["mdoel"] = {}
    with pytest.raises(UserError) as caught:
        parse_recipe(raw, "strange")
    lines = str(caught.value).splitlines()[1:]
    for part in (
        "optimizer.learning_rate = 'fast': input should be a valid number",
        "optimizer.weightdecay: there is no such field; did you mean weight_decay?",
        "schedule.warmup_steps = -3: input should be greater than or equal to 0",
        "visual.feature_size = 0: input should be greater than or equal to 1",
        "mdoel: there is no such field; did you mean model?",
    ):
        assert sum(part in line for line in lines) == 1, (part, lines)
    assert len(lines) == 5, lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: !!python/object/apply:os.system ['true']", "is not plain YAML"),
        ("run: !secret x", "is not plain YAML"),
        ("run: [", "is not plain YAML"),
        ("run: {folder: 2024-09-31}", "is not plain YAML: day is out of range.* wants quotes"),
        ("- a", "is not a mapping of sections"),
        ("", "is not a mapping of sections"),
        ("run: {steps: 1, steps: 2}", "steps stands twice in .* line 1"),
        ("run: &a {folder: *a}", "an alias stands inside of what it names"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_recipe(path)


def test_a_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not plain YAML"):
        load_recipe(path)
    with pytest.raises(UserError, match="does not exist; see trainer/m3p/recipes/"):
        load_recipe(tmp_path / "none.yaml")
