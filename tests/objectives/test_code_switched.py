"""Of trainer/m3p/objectives/code_switched.py: captions are switched in the language of the word lists alone."""

from pathlib import Path

import pytest

from m3p.errors import UserError
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives


@pytest.mark.parametrize("languages", ["[de, en]", "[de]", "null"])
def test_a_source_with_captions_in_other_languages_is_refused(tiny: Path, languages: str) -> None:
    recipe = load_recipe(tiny, [f"objectives.code_switched.sources.0.languages={languages}"])
    with pytest.raises(UserError, match=r"train: has captions in de.*, and words are switched from en alone .*\[en\]"):
        build_objectives(recipe)
