"""Marks of recipe fields, for `json_schema_extra`: whether a field may change from one start of a run to the next."""

from typing import Any

RESUME = "may_change_on_resume"
MAY_CHANGE: dict[str, Any] = {RESUME: True}
"""The field, and all inside it, changes nothing that is learnt, or its content is compared instead."""
MUST_STAY: dict[str, Any] = {RESUME: False}
"""The field matters, inside a section that may change. Fields outside of such sections need no mark: they must stay."""
