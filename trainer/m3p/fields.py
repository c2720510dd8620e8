"""What several sections of a recipe share: marks of fields, for `json_schema_extra`, and a type of lists.

The marks say whether a field may change from one start of a run to the next.
"""

from typing import Annotated, Any

from pydantic import AfterValidator

RESUME = "may_change_on_resume"
MAY_CHANGE: dict[str, Any] = {RESUME: True}
"""The field, and all inside it, changes nothing that is learnt, or its content is compared instead."""
MUST_STAY: dict[str, Any] = {RESUME: False}
"""The field matters, inside a section that may change. Fields outside of such sections need no mark: they must stay."""


def _each_once(names: list[str]) -> list[str]:
    """Return the list. Raises ValueError where a name stands in it twice, which would count twice without a word."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} stands twice in the list; name each once")
    return names


Names = Annotated[list[str], AfterValidator(_each_once)]
"""A list of names in a recipe, each once."""
