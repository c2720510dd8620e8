"""YAML from anybody: plain data, and bounded before anything is built from it."""

import time
from pathlib import Path

import pytest
import yaml

from m3p.errors import UserError
from m3p.recipe.load import load_recipe
from m3p.recipe.yaml_file import MAX_BYTES, parse_yaml


def nested(reference: str) -> str:
    """Nine lists of nine aliases each: 9^9 values in a few hundred bytes; `reference` says how one list is used in the next."""
    lines = ["a0: &a0 {x: 1}"]
    for number in range(1, 10):
        uses = ", ".join([f"*a{number - 1}"] * 9)
        lines.append(f"a{number}: &a{number} " + reference.format(uses))
    return "\n".join(lines)


BOMBS = {
    "aliases": nested("[{}]"),
    "merge keys": nested("{{<<: [{}]}}"),
    "an alias inside of itself": "a: &a [*a]",
    "a long file": "a: " + "x" * MAX_BYTES,
    "many keys": "\n".join(f"key{number}: 1" for number in range(60_000)),
}


@pytest.mark.long
@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_what_expands_without_end_is_refused_in_time(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    began = time.perf_counter()
    with pytest.raises(UserError, match=r"recipe\.yaml (is not plain YAML|has \d+ mistake)") as caught:
        load_recipe(path)
    assert time.perf_counter() - began < 30
    assert len(str(caught.value)) < 10_000


def test_aliases_within_bounds_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}


def test_tags_keys_that_come_twice_and_keys_that_are_no_names_are_refused() -> None:
    for text in (
        "!!python/object/apply:os.system [ls]",
        "{a: 1, a: 2}",
        "{[1, 2]: 3}",
        "? {a: 1}\n: 3",
        "{&a [1]: 2, b: {*a : 1}}",
    ):
        with pytest.raises(yaml.YAMLError):
            parse_yaml(text)


@pytest.mark.parametrize(
    "number", ["9" * 100_000, "0x" + "f" * 100_000, "1:" + ":".join(["59"] * 50_000), "0b" + "1" * 5000]
)
def test_a_number_without_end_is_refused_in_one_line(tmp_path: Path, number: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"run: {{steps: {number}}}\n")
    with pytest.raises(UserError, match=r"recipe\.yaml is not plain YAML: a number of [\d,]+ characters in") as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 1000
    assert parse_yaml("[0x1f, 1:30, -12, 1_000]") == [31, 90, -12, 1000]
