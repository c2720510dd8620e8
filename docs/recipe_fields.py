"""Writes docs/recipe-fields.md, the reference of every recipe field, from the schema: `python docs/recipe_fields.py`."""

import ast
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from m3p.recipe.recipe import Recipe

PAGE = Path(__file__).parent / "recipe-fields.md"
HEAD = """# Recipe fields

Every field of a recipe, from the schema that checks it. This page is generated: `python docs/recipe_fields.py` writes it
anew. [Recipes](recipes.md) explains what a recipe is and how fields are set on the command line.
"""


def reference() -> str:
    """Return the page."""
    return HEAD + "".join(_sections("", Recipe, {}))


def _sections(name: str, model: type[BaseModel], seen: dict[type[BaseModel], str]) -> Iterator[str]:
    """Yield the table of the section `name`, then those of the sections inside it; `seen` are those that stand above."""
    if model in seen:
        yield f"\n## {name}\n\nThe fields of `{seen[model]}`, above.\n"
        return
    seen[model] = name
    own = {field: info for field, info in model.model_fields.items() if not _models(info.annotation)}
    if own:
        yield f"\n## {name}\n\n{_first_line(model)}\n\n| field | value | default | meaning |\n|---|---|---|---|\n"
        yield from (_row(model, field, info) for field, info in own.items())
    for field, info in model.model_fields.items():
        inner = _models(info.annotation)
        star = ".NAME" if get_origin(info.annotation) is dict else ".N" if get_origin(info.annotation) is list else ""
        path = f"{name}.{field}" if name else field
        for section in inner:
            tags = [_tag(section)] if len(inner) > 1 else []
            yield from _sections(" ".join([path + star, *tags]), section, seen)


def _row(model: type[BaseModel], field: str, info: FieldInfo) -> str:
    words = [_type(info.annotation), *_bounds(info)]
    return (
        f"| `{field}` | {_cell(', '.join(words))} | {_cell(_default(info))} | {_cell(_meaning(model, field, info))} |\n"
    )


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections inside an annotation such as `A | None`, `list[A]` or `dict[str, A]`."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _tag(section: type[BaseModel]) -> str:
    """Return how one of several possible sections is chosen: `kind: patches`."""
    for field, info in section.model_fields.items():
        if get_origin(info.annotation) is Literal and info.is_required():
            return f"({field}: {get_args(info.annotation)[0]})"
    return f"({section.__name__})"


def _type(annotation: Any) -> str:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    origin, inside = get_origin(annotation), get_args(annotation)
    if annotation in names:
        return names[annotation]
    if origin is Annotated:
        return _type(inside[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inside)
    if origin is list:
        return f"list of {_type(inside[0])}"
    if origin is dict:
        return f"{_type(inside[0])} to {_type(inside[1])}"
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in inside if one is not type(None))
    return str(getattr(annotation, "__name__", annotation)).lower()


def _bounds(info: FieldInfo) -> list[str]:
    signs = {Gt: "above", Ge: "at least", Lt: "below", Le: "at most"}
    return [
        f"{word} {_number(getattr(bound, name))}"
        for bound in info.metadata
        for kind, word in signs.items()
        for name in [kind.__name__.lower()]
        if isinstance(bound, kind)
    ]


def _number(value: float) -> str:
    power = value.bit_length() - 1 if isinstance(value, int) else 0
    return f"2^{power}" if power > 40 and value == 1 << power else f"{value:,}"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    if info.default_factory is not None:
        return "see the meaning"
    value = info.default
    if value is None:
        return "left out"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(model: type[BaseModel], field: str, info: FieldInfo) -> str:
    if len(get_args(info.annotation)) == 1 and get_origin(info.annotation) is Literal:
        return "Chooses this form of the section."
    text = info.description or _attribute_docstring(model, field)
    if not text:
        raise ValueError(f"{model.__name__}.{field} has no description: give its Field one")
    return " ".join(text.split())


def _attribute_docstring(model: type[BaseModel], field: str) -> str:
    """Return the string that stands below a field in its class, or that of the class it comes from."""
    for owner in model.__mro__:
        if field not in vars(owner).get("__annotations__", {}):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for here, below in zip(tree.body, tree.body[1:], strict=False):
            named = isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name) and here.target.id == field
            if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                return str(below.value.value)
    return ""


def _first_line(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def _cell(text: str) -> str:
    """Return text as it may stand in a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    text = reference()
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == text else f"{PAGE} is old: python docs/recipe_fields.py")
    PAGE.write_text(text, encoding="utf-8")
