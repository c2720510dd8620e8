"""What differs from the paper is a field of the recipe that is there, or stands in the documents with the reason."""

import re

import pytest
from pydantic import BaseModel

from m3p.recipe.recipe import Recipe
from m3p.recipe.schema import models_in
from tests.launch import ROOT

PAGE = (ROOT / "docs" / "differences-from-m3p.md").read_text()
ROWS = {
    cells[0]: cells for line in PAGE.splitlines() if len(cells := [cell.strip() for cell in line.split("|")[1:-1]]) == 4
}
"""First cell of each row of the tables -> the row: what, M3P, here, why."""


@pytest.mark.parametrize(
    "departure",
    [
        "embedding layer norm",
        "dropout of picture tokens",
        "attention dropout",
        "optimizer",
        "language table",
        "matching loss",
    ],
)
def test_a_departure_from_the_paper_is_listed_with_what_it_is_here_and_why(departure: str) -> None:
    _, theirs, ours, why = ROWS[departure]
    assert theirs
    assert ours != theirs
    assert why


def test_fields_that_the_page_names_are_fields_of_a_recipe() -> None:
    named = set(re.findall(r"`((?:model|optimizer|schedule|run|data)(?:\.\w+)+)`", PAGE))
    assert {"model.attention_dropout", "optimizer.weight_decay", "optimizer.clip", "model.pooling"} <= named
    for place in named:
        models: list[type[BaseModel]] = [Recipe]
        for name in place.split("."):
            fields = [model.model_fields[name] for model in models if name in model.model_fields]
            assert fields, f"{place}: there is no {name}"
            models = [inner for field in fields for inner in models_in(field.annotation)]
