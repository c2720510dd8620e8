"""Of trainer/m3p/training/deepspeed/engine.py: what needs no run (those that do: test_gradients.py, tests/test_equality.py)."""

from typing import Any

import pytest

from m3p.training.deepspeed.engine import drops
from tests.model.test_build import build


@pytest.mark.parametrize(
    ("settings", "dropped"), [({}, False), ({"dropout": 0.1}, True), ({"attention_dropout": 0.1}, True)]
)
def test_any_dropout_is_seen(settings: dict[str, Any], dropped: bool) -> None:
    fields: dict[str, Any] = {"dropout": 0.0, **settings}
    assert drops(build(**fields)) == dropped
