"""Recipes, settings and batch scripts are found by name, from a checkout as from a wheel."""

from pathlib import Path

import pytest

from m3p.errors import UserError
from m3p.recipe.load import load_recipe
from m3p.shipped import DS_CONFIGS, SLURM, find_ds_config, find_recipe, recipes
from tests.launch import ROOT


def test_names_lead_to_what_is_shipped_and_paths_to_themselves(tmp_path: Path) -> None:
    own = tmp_path / "demo"
    own.write_text("run: {}")
    assert find_recipe("demo") == ROOT / "trainer/m3p/recipes/demo.yaml"
    assert find_recipe(own) == own
    assert find_ds_config("zero1").read_text() == (ROOT / "ds_configs/zero1.json").read_text()


def test_every_name_that_is_listed_is_found_and_described() -> None:
    for name, line in recipes().items():
        assert load_recipe(find_recipe(name)).run.steps
        assert len(line.split()) > 4


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(
        UserError, match=r"recipe 'dem': there is no such file.*did you mean demo\? There are: .*stamps"
    ):
        find_recipe("dem")
    with pytest.raises(UserError, match=r"DeepSpeed config 'runs/none.json'.*There are: zero0, zero1"):
        find_ds_config("runs/none.json")


def test_the_package_holds_what_the_folders_at_the_top_hold() -> None:
    for inside, top in ((DS_CONFIGS, ROOT / "ds_configs"), (SLURM, ROOT / "slurm")):
        assert sorted(path.name for path in inside.iterdir()) == sorted(path.name for path in top.iterdir())
