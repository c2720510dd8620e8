"""benchmarks/generated.py: data on which a step does all the work of a real one."""

from importlib import import_module
from pathlib import Path

import pytest

from m3p.model.flops import Work
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives
from tests.launch import ROOT


def test_every_pair_has_a_mismatched_one_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    folder = tmp_path / "data"
    import_module("generated").generate(folder, 300, 6, 4, 2048)
    paths = {
        "model.initialise": "null",
        "model.tokenizer": folder / "tokenizer",
        "model.shape.layers": 1,
        "objectives.multilingual_text.sources.0.path": folder / "text/*",
        "objectives.image_caption.sources.0.path": folder / "cc3m",
        "objectives.code_switched.sources.0.path": folder / "cc3m",
        "objectives.code_switched.switching.dictionary": folder / "dictionary",
    }
    recipe = load_recipe(
        ROOT / "trainer/m3p/recipes/m3p_base.yaml", [f"{name}={value}" for name, value in paths.items()]
    )
    for name in ("image_caption", "code_switched"):
        batch = build_objectives(recipe)[name].batch(range(6), range(6))
        assert batch.tokens > 5 * (5 + 36)
        # Caption alone, picture alone, both, and a caption with another pair's picture: pairs of one picture have none.
        assert len(batch.lengths) == 4 * 6
        assert Work.of(batch).terms["matching"] == 2 * 6
