"""Words what is wrong with a recipe: every mistake at once, one line each, with field, value, rule and way out."""

import difflib
import re
import reprlib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from m3p.recipe.schema import models_in

Location = tuple[int | str, ...]
"""Where a value stands in a recipe: names of sections and fields, numbers in lists, and tags that pydantic adds."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80  # a value in a message is never more than a few hundred characters


def every_mistake(model: type[BaseModel], raw: dict[str, Any], error: ValidationError) -> list[str]:
    """Return a line for each mistake in `raw`, which `model` refused with `error`; no line comes twice.

    Rules between fields are checked only when each field is right. So wrong values are taken out of `raw` (it is changed), and
    what is left is validated again until nothing new is found. What only follows from a value's removal is no mistake.
    """
    lines: list[str] = []
    removed: set[Location] = set()
    while True:
        found = [entry for entry in error.errors() if not _follows(entry, removed)]
        lines += [
            line for entry in found for line in _words(model, entry).splitlines() if not _names_one(line, removed)
        ]
        wrong = [_culprit(raw, entry) for entry in found if entry["type"] != "missing"]
        locations = {location for location in wrong if _remove(raw, location)}
        if not locations:
            break
        removed |= locations
        try:
            model.model_validate(raw)
        except ValidationError as next_error:
            error = next_error
        else:
            break
    return list(dict.fromkeys(lines))


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
