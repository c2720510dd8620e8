from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p.ablation.variants import Variation, parse_variation, trials, variants
from m3p.errors import UserError
from m3p.paths import file_name
from m3p.recipe.load import parse_recipe
from m3p.recipe.yaml_file import parse_yaml
from tests.tiny import tiny_recipe


def test_every_combination_is_a_variant_and_the_first_values_come_first() -> None:
    found = variants(
        [parse_variation("objectives.code_switched.weight=1,0"), parse_variation("model.dropout=0,0.1,0.5")]
    )
    assert [variant.name for variant in found][:2] == [
        "code_switched.weight=1 model.dropout=0",
        "code_switched.weight=1 model.dropout=0.1",
    ]
    assert len(found) == 6
    assert found[5].overrides == ("objectives.code_switched.weight=0", "model.dropout=0.5")


def test_fields_of_one_name_are_told_apart() -> None:
    fields = ("objectives.image_caption.tasks.matching=0,1", "objectives.code_switched.tasks.matching=0,1")
    names = {variant.name for variant in variants([parse_variation(text) for text in fields])}
    assert len(names) == 4


def test_lists_and_null_are_values() -> None:
    assert parse_variation("evaluation.dev.languages=[en, de],[no],null").values == (["en", "de"], ["no"], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.dropout", "not of the form"),
        ("=1,2", "not of the form"),
        ("model.dropout=1", "two or more"),
        ("model.dropout=1,1", "each once"),
        ("model.dropout=[1,2", "are not YAML"),
        ("run.seed=1,2", "--seeds"),
        ("run.folder=a,b", "--seeds"),
    ],
)
def test_what_cannot_be_varied_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_variation(text)


def test_a_field_that_is_varied_twice_is_refused() -> None:
    with pytest.raises(UserError, match="given twice"):
        variants([parse_variation("model.dropout=0,1"), parse_variation("model.dropout=2,3")])


@pytest.mark.long
@given(st.lists(st.text() | st.integers() | st.booleans() | st.none(), min_size=2, max_size=5, unique_by=repr))
def test_overrides_give_the_values_back_and_folders_are_apart(values: list[object]) -> None:
    found = variants([Variation("model.field", tuple(values))])
    planned = trials(found, 2, 5, Path("ablation"))
    assert len({trial.folder for trial in planned}) == 2 * len(values)
    for trial in planned:
        assert file_name(trial.folder.parent.name)
        assert trial.folder.parent.parent == Path("ablation")
    for variant, value in zip(found, values, strict=True):
        assert parse_yaml(variant.overrides[0].partition("=")[2]) == value


def test_seeds_are_run_round_by_round(tmp_path: Path) -> None:
    found = variants([parse_variation("model.dropout=0,0.1")])
    planned = trials(found, 3, 7, tmp_path)
    assert [trial.seed for trial in planned] == [7, 7, 8, 8, 9, 9]
    recipe = parse_recipe(tiny_recipe(tmp_path), "tiny", planned[-1].overrides)
    assert (recipe.run.seed, recipe.model.dropout, recipe.run.folder) == (9, 0.1, planned[-1].folder)
