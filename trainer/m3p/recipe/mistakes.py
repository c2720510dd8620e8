"""Words what is wrong with a recipe: every mistake at once, one line each, with field, value, rule and way out."""

import difflib
import re
import reprlib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from m3p.recipe.schema import models_in

Location = tuple[int | str, ...]
"""Where a value stands in a recipe: names of sections and fields, numbers in lists, and tags that pydantic adds."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80  # a value in a message is never more than a few hundred characters


def every_mistake(model: type[BaseModel], raw: dict[str, Any]) -> list[str]:
    """Return a line for each mistake in `raw`, the content of a `model`; no line comes twice.

    Rules between fields are checked only when each field is right. So wrong values are taken out of `raw` (it is changed), and
    what is left is validated again until nothing new is found. What only follows from a value's removal is no mistake.
    """
    truths = list(truth_values([model], raw))
    lines = [
        f"{'.'.join(map(str, location))} = {str(value).lower()}: want a number, not true or false"
        for location, value in truths
    ]
    removed = {location for location, _ in truths if _remove(raw, location)}
    while (error := _refusal(model, raw)) is not None:
        found = [entry for entry in error.errors() if not _follows(entry, removed)]
        lines += [
            line for entry in found for line in _words(model, entry).splitlines() if not _names_one(line, removed)
        ]
        wrong = [_culprit(raw, entry) for entry in found if entry["type"] != "missing"]
        locations = {location for location in wrong if _remove(raw, location)}
        if not locations:
            break
        removed |= locations
    return list(dict.fromkeys(lines))


def _refusal(model: type[BaseModel], raw: dict[str, Any]) -> ValidationError | None:
    try:
        model.model_validate(raw)
    except ValidationError as error:
        return error
    return None


def truth_values(
    models: list[type[BaseModel]],
    raw: Any,
    location: Location = (),
    wants_number: bool = False,
    around: frozenset[int] = frozenset(),
) -> Iterator[tuple[Location, bool]]:
    """Yield where true or false stands for a number, which pydantic takes for 1 and 0, and which of them it is.

    `raw` is what stands at `location`, in a field that holds `models`, and a number where `wants_number` says so. Whoever writes
    `trained: false` wants nothing trained; as a number it is the first layer. `around` holds the identities of the sections and
    lists around `raw`: where Python made the recipe, one may stand inside of itself, and pydantic refuses it later.
    """
    if isinstance(raw, bool):
        if wants_number:
            yield location, raw
    elif id(raw) in around:
        return
    elif isinstance(raw, dict):
        for name, part in raw.items():
            fields = [model.model_fields[name] for model in models if name in model.model_fields]
            inside = [one for field in fields for one in models_in(field.annotation)] if fields else models
            numbers = any(_is_number(field.annotation) for field in fields) if models else wants_number
            yield from truth_values(inside, part, (*location, name), numbers, around | {id(raw)})
    elif isinstance(raw, list):
        for number, part in enumerate(raw):
            yield from truth_values(models, part, (*location, number), wants_number, around | {id(raw)})


def _is_number(annotation: Any) -> bool:
    """Tell whether a field of this annotation holds a number, and neither true nor false."""
    types = _plain_types(annotation)
    return bool(types & {int, float}) and bool not in types


def _plain_types(annotation: Any) -> set[Any]:
    """Return the types inside an annotation such as `int | None` or `dict[str, float]`; none of a literal."""
    if _literals(annotation):
        return set()
    inside = get_args(annotation)
    if inside:
        return {one for part in inside for one in _plain_types(part)}
    return {annotation} if isinstance(annotation, type) else set()


def _culprit(raw: dict[str, Any], entry: ErrorDetails) -> Location:
    """Return what to take out so that the rest can be judged. Of a rule of a section: the field that its message begins with."""
    location = entry["loc"]
    section: Any = raw
    for name in _in_raw(raw, location):
        section = section[name]
    first = re.match(r"(?:Value error, )?`?(\w+)", entry["msg"])
    if entry["type"] == "value_error" and first and isinstance(section, dict) and first[1] in section:
        return (*location, first[1])
    return location


def _follows(entry: ErrorDetails, removed: set[Location]) -> bool:
    """Say whether an error is there only since another field is wrong, or since a value was removed."""
    return entry["type"] == "default_factory_not_called" or entry["loc"] in removed


def _names_one(line: str, removed: set[Location]) -> bool:
    """Say whether a message is about a field that was removed: it was judged by its default then, or missed.

    Rules between fields name all fields that they look at.
    """
    return any(re.search(rf"\b{re.escape(str(location[-1]))}\b", line) for location in removed)


def _remove(raw: Any, location: Location) -> bool:
    """Take the value at `location` out of `raw`; say whether it was there."""
    names = _in_raw(raw, location)
    if not names:
        return False
    for name in names[:-1]:
        raw = raw[name]
    return isinstance(raw, dict) and raw.pop(names[-1], None) is not None


def _in_raw(raw: Any, location: Location) -> list[int | str]:
    """Return `location` without the tags that pydantic puts in for unions."""
    names: list[int | str] = []
    for name in location:
        inside = (isinstance(raw, dict) and name in raw) or (isinstance(raw, list) and isinstance(name, int))
        if inside:
            names.append(name)
            raw = raw[name]
    return names


def _words(model: type[BaseModel], entry: ErrorDetails) -> str:
    """Return a line for one error: field, value, rule, way out."""
    location, kind = entry["loc"], entry["type"]
    field = ".".join(str(part) for part in _fields(model, location))
    if kind == "extra_forbidden":
        known = _known_fields(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{field}: there is no such field; {hint}"
    if kind == "missing":
        return f"{field}: missing; give it a value"
    text = entry["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{field}: {text}" if field else text
    return f"{field} = {_SHORT.repr(entry['input'])}: {text[0].lower() + text[1:]}"


def _fields(model: type[BaseModel], location: Location) -> list[int | str]:
    """Return `location` without the tags of unions: a tag is the value of the field that tells the members of a union apart."""
    models: list[type[BaseModel]] = [model]
    found: list[int | str] = []
    for name in location:
        tags = {
            value for inner in models for field in inner.model_fields.values() for value in _literals(field.annotation)
        }
        if found and name in tags and not any(name in inner.model_fields for inner in models):
            continue
        found.append(name)
        models = _inside(models, name)
    return found


def _literals(annotation: Any) -> tuple[Any, ...]:
    """Return the values of a `Literal[...]`, none of another annotation."""
    return get_args(annotation) if str(annotation).startswith("typing.Literal") else ()


def _known_fields(model: type[BaseModel], location: Location) -> list[str]:
    """Return the fields of the section at `location`."""
    models: list[type[BaseModel]] = [model]
    for name in location:
        models = _inside(models, name)
    return sorted({name for inner in models for name in inner.model_fields})


def _inside(models: list[type[BaseModel]], name: int | str) -> list[type[BaseModel]]:
    """Return the models that the field `name` of `models` may hold; the same ones where it is no field (a tag, a number)."""
    inner = [models_in(one.model_fields[str(name)].annotation) for one in models if str(name) in one.model_fields]
    return [one for found in inner for one in found] or models
