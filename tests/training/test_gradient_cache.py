from typing import Any

import pytest

from m3p.training.gradient_cache import drops
from tests.model.test_build import build


@pytest.mark.parametrize(
    ("settings", "dropped"), [({}, False), ({"dropout": 0.1}, True), ({"attention_dropout": 0.1}, True)]
)
def test_any_dropout_is_seen(settings: dict[str, Any], dropped: bool) -> None:
    fields: dict[str, Any] = {"dropout": 0.0, **settings}
    assert drops(build(**fields)) == dropped
