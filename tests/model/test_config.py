from typing import Any

import pytest
from pydantic import ValidationError

from m3p.model.config import ModelConfig
from m3p.model.encoder import EncoderShape

SHAPE = {"layers": 2, "width": 8, "heads": 2, "feed_forward": 8, "positions": 10}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either `initialise` .* or `shape` .*, and not both"),
        ({"initialise": "a", "shape": SHAPE}, "either `initialise` .* or `shape` .*, and not both"),
        ({"shape": SHAPE}, "`tokenizer` is missing"),
        ({"shape": SHAPE, "tokenizer": "t", "layers": 1}, "`layers` cuts `initialise`; .* set shape.layers"),
        ({"shape": {**SHAPE, "heads": 3}, "tokenizer": "t"}, "heads = 3 does not divide width = 8"),
        ({"initialise": "a", "freeze": ["tails"]}, "freeze"),
        ({"initialise": "a", "freeze": ["text"], "pooling": "mean"}, "freeze: .text. wants encode_pictures: false"),
        ({"initialise": "a", "remember_texts": True}, "remember_texts: .* add text to freeze"),
        ({"initialise": "a", "encode_pictures": False}, "pooling = first: .* set pooling: mean"),
        ({"initialise": "a", "dropout": 1.0}, "dropout"),
        ({"initialise": "a", "temperature": 0.0}, "temperature"),
    ],
)
def test_what_cannot_be_built_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(fields)


def test_either_start_is_taken() -> None:
    assert ModelConfig.model_validate({"initialise": "a", "layers": 2}).tokenizer is None
    assert ModelConfig.model_validate({"shape": SHAPE, "tokenizer": "t"}).shape == EncoderShape.model_validate(SHAPE)
