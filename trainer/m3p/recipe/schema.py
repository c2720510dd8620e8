"""What the classes of a recipe's sections say of its fields, beside their types."""

import types
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel

from m3p.fields import RESUME


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside an annotation such as `A | None` or `list[B]`."""
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, BaseModel)
    ):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def may_change(model: type[BaseModel], location: Sequence[str]) -> bool:
    """Say whether the field at `location` of `model` may change from one start of a run to the next.

    `location`: names of sections and fields, keys, and numbers in lists. The innermost mark counts (fields.py); a field without
    any must stay.
    """
    models, free = [model], False
    for name in location:
        fields = [one.model_fields[name] for one in models if name in one.model_fields]
        for field in fields:
            if isinstance(field.json_schema_extra, dict) and RESUME in field.json_schema_extra:
                free = bool(field.json_schema_extra[RESUME])
        models = [inner for field in fields for inner in models_in(field.annotation)] or models
    return free
