"""Reads a recipe: one YAML file and `section.key=value` overrides."""

from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from m3p.errors import UserError
from m3p.paths import masked
from m3p.recipe.epochs import steps_of
from m3p.recipe.mistakes import every_mistake, truth_values
from m3p.recipe.recipe import MAX_EPOCHS, MAX_STEPS, Recipe
from m3p.recipe.yaml_file import parse_yaml, read_yaml
from m3p.terminal import warn
from m3p.unicode_text import HALF, is_unicode

RENAMED = {
    "run.most_skipped": "max_skipped",
    "data.most_bad": "max_bad_share",
    "objectives.*.most_tokens": "max_tokens",
    "visual.most": "max_regions",
    "visual.largest": "max_pixels",
}
"""Fields of earlier versions, as recipes and run folders may still have them, and their names of today."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate. Raises UserError that lists every mistake with field, value, rule and way out."""
    return parse_recipe(_read(path), str(path), overrides)


def parse_recipe(raw: dict[str, Any], name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Validate `raw`, the content of the file `name`, with overrides. Raises UserError."""
    for override in overrides:
        _override(raw, override)
    if halves := list(_half_characters(raw, "", set())):
        lines = "\n".join(f"  - {place}: {text!r} holds {HALF}; the rule is Unicode text" for place, text in halves)
        raise UserError(f"{name} has {len(halves)} mistake(s):\n{lines}")
    for line in take_new_names(raw):
        warn(f"{name}: {line}")
    epochs = _take_epochs(raw, name)
    recipe = _validate(raw, name)
    if epochs is None:
        return recipe
    steps, words = steps_of(epochs, recipe)
    warn(f"{name}: run.epochs = {epochs:g} is run.steps = {steps:,} ({words})")
    raw["run"] = {**raw["run"], "steps": steps, "epochs": None}
    return _validate(raw, name)


def _half_characters(value: Any, place: str, known: set[int]) -> Iterator[tuple[str, str]]:
    """Yield the texts of a recipe that UTF-8 cannot write, names of fields too, and the place of each, as "run.folder".

    `known` holds the sections and lists that were looked through, by their identity: one may stand in several places, or, where
    Python made the recipe, inside of itself.
    """
    if isinstance(value, str) and not is_unicode(value):
        yield place or "a field's name", value
    elif isinstance(value, dict | list) and id(value) not in known:
        known.add(id(value))
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            inside = f"{place}.{name}" if place else str(name)
            if is_unicode(inside):
                yield from _half_characters(part, inside, known)
            else:
                yield place or "a field's name", str(name)


def _take_epochs(raw: dict[str, Any], name: str) -> float | None:
    """Return `run.epochs`, for which the most steps that there may be stand until these are known; None where it is not given.

    Raises UserError where steps are given too.
    """
    run = raw.get("run")
    if not isinstance(run, dict) or run.get("epochs") is None:
        return None
    if run.get("steps") is not None:
        raise UserError(
            f"{name}: run.epochs = {run['epochs']} and run.steps = {run['steps']}: each says how long the run is; leave one out "
            "(on the command line: run.steps=null)"
        )
    raw["run"] = {**run, "steps": MAX_STEPS}
    given = run["epochs"]
    return (
        float(given) if isinstance(given, int | float) and 0 < given <= MAX_EPOCHS else 1.0
    )  # wrong ones are refused next


def _validate(raw: dict[str, Any], name: str) -> Recipe:
    cause = None
    if not any(truth_values([Recipe], raw)):
        try:
            return Recipe.model_validate(raw)
        except ValidationError as error:
            cause = error
    mistakes = every_mistake(Recipe, raw)
    lines = "\n".join(f"  - {line}" for line in mistakes)
    raise UserError(f"{name} has {len(mistakes)} mistake(s):\n{lines}") from cause


def take_new_names(raw: dict[str, Any]) -> list[str]:
    """Give fields of `raw` that were renamed their names of today; return a line for each."""
    lines = []
    for pattern, new in RENAMED.items():
        *sections, old = pattern.split(".")
        for location, section in _sections(raw, sections):
            if old in section and new not in section:
                section[new] = section.pop(old)
                lines.append(f"{location}{old} is called {new} now")
    return lines


def _sections(raw: Any, names: Sequence[str], location: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the sections of `raw` that `names` lead to, `*` standing for any, and their locations as "section."."""
    if not isinstance(raw, dict):
        return
    if not names:
        yield location, raw
        return
    for name in list(raw) if names[0] == "*" else [names[0]]:
        yield from _sections(raw.get(name), names[1:], f"{location}{name}.")


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML; loading it gives the same recipe."""
    written = recipe.model_dump(mode="json", exclude_none=True)
    written["run"]["spike"] = recipe.run.spike  # the one field in which null is not what leaving it out means
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"recipe {path} does not exist; see trainer/m3p/recipes/ for the ones that come with the program"
        )
    try:
        raw = read_yaml(path)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"recipe {path} is not plain YAML: {masked(_reason(error))}") from error
    if not isinstance(raw, dict):
        raise UserError(f"recipe {path} is not a mapping of sections (run, model, objectives, ...)")
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in place; the value is read as YAML, a number steps into a list."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"override {masked(override)!r} is not of the form section.key=value")
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"override {masked(override)!r}: the value is not YAML ({masked(_reason(error))})") from error
    node: Any = raw
    *parents, last = path.split(".")
    for part in parents:
        # Copied on the way down: with YAML's anchors one section may stand in several places.
        if isinstance(node, list):
            index = _list_index(node, part, override)
            node[index] = copy(node[index])
            node = node[index]
        else:
            node[part] = {} if node.get(part) is None else copy(node[part])
            node = node[part]
        if not isinstance(node, dict | list):
            raise UserError(f"override {masked(override)!r}: {part} is a value, not a section")
    if isinstance(node, list):
        node[_list_index(node, last, override)] = value
    else:
        node[last] = value


def _reason(error: Exception) -> str:
    """Say in one line what YAML complains of; what it takes for a date or a number fails as those do (2024-09-31)."""
    # Those of bytes that are no text are ValueErrors too.
    hint = "; a text that looks like a date or a number wants quotes" if type(error) is ValueError else ""
    return " ".join(str(error).split()) + hint


def _list_index(node: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or len(part) > 9 or int(part) >= len(node):
        raise UserError(
            f"override {masked(override)!r}: {part!r} is not a place in a list of {len(node)}; count from 0"
        )
    return int(part)
