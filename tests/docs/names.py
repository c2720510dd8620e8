"""Checks names that stand in the text of the documents, as code: commands, files, tests and recipe fields."""

import re
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from m3p.recipe.recipe import Recipe
from tests.docs.blocks import ROOT
from tests.docs.command_line import Wrong, m3p_command

SECTIONS = "|".join(Recipe.model_fields)
_FIELD = re.compile(rf"^(?:{SECTIONS})(?:\.[\w*]+)+$")
_FILE = re.compile(r"^(?:trainer|tests|docs|slurm|ds_configs|benchmarks|\.ci)/[\w./-]*\w(?:::\w+)?$")
FREE = {"NAME", "N", "*"}
"""Parts of a field's name that stand for any."""
ANY_SET = "multi30k"
"""What `m3p prepare SET` and `m3p prepare NAME` are checked with: its options are those of every published set."""


def check_name(code: str) -> None:
    """Check `code`, which stands between backticks, where it looks like a name of ours. Raises Wrong."""
    if code.startswith("m3p "):
        _mention(code)
    elif (
        code.partition("=")[0].endswith((".py", ".sh", ".md", ".json", ".yaml", ".safetensors"))
        or "::" in code
        or "/" in code
    ):
        if _FILE.match(code) and "NAME" not in code:
            _file(code)
    elif _FIELD.match(code.partition("=")[0]):
        check_field(code.partition("=")[0])


def _mention(code: str) -> None:
    """`m3p data peek|stats` means each of them; options must exist, arguments may be left out."""
    words = code.split()[1:]
    for number, word in enumerate(words):
        if "|" in word and not word.startswith("-"):
            for one in word.split("|"):
                _mention(" ".join(["m3p", *words[:number], one, *words[number + 1 :]]))
            return
    named = [ANY_SET if word in ("SET", "NAME") and words[0] == "prepare" else word for word in words]
    command, rest = m3p_command([word for word in named if word not in ("...", "[...]")])
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in rest:
        if word.startswith("--") and word.partition("=")[0] not in known:
            raise Wrong(f"{code}: no option {word}")


def _file(code: str) -> None:
    name, _, test = code.partition("::")
    path = ROOT / name
    if not path.exists():
        raise Wrong(f"{name} does not exist")
    if test and f"def {test}(" not in path.read_text(encoding="utf-8"):
        raise Wrong(f"{name} has no test {test}")


def check_field(name: str) -> None:
    """Check that a recipe may have the field `name`, such as objectives.image_caption.tasks. Raises Wrong."""
    models: list[Any] = [Recipe]
    for part in name.split("."):
        if part in FREE or part.isdigit():
            continue
        if not any(isinstance(model, type) and issubclass(model, BaseModel) for model in models):
            return  # inside a mapping, such as tasks: names of its own
        found = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if found:
            models = [inner for annotation in found for inner in models_in(annotation)]
        elif name.startswith("evaluation."):
            continue  # the reader's own name
        else:
            raise Wrong(f"a recipe has no field {name}")


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside an annotation such as `A | None`, `list[A]` or `dict[str, A]`."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]
