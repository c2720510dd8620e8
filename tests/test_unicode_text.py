"""Halves of characters, of JSON and YAML and of names that are not UTF-8, are refused by name wherever text comes in."""

import os
import sys
from pathlib import Path

import pytest

from m3p.cli import main as cli
from m3p.errors import UserError
from m3p.recipe.load import load_recipe, parse_recipe
from m3p.runs import open_run
from m3p.training.main import main as train
from m3p.unicode_text import check_words, is_unicode
from tests.tiny import tiny_recipe

LATIN = os.fsdecode(b"caf\xe9")
"""A name in Latin-1, as Python gets it from the command line and from folders."""


def test_a_text_is_unicode_or_holds_half_a_character() -> None:
    assert all(map(is_unicode, ("", "café", "犬", "\U0001f415", "\0")))
    assert not any(map(is_unicode, (LATIN, "\ud800", "a\udfffb", "\ud83d\udc15")))


def test_words_of_the_command_line_are_utf_8(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["m3p", "show", f"/data/{LATIN}/recipe.yaml"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"error: '/data/caf\udce9/recipe.yaml' on the command line is not UTF-8")
    with pytest.raises(UserError, match=r"'run\.folder=caf\\udce9' on the command line is not UTF-8"):
        train(["--recipe", "demo", "--deepspeed_config", "zero1", f"run.folder={LATIN}"])


def test_a_working_folder_that_is_not_utf_8_is_named_and_another_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (LATIN, "café"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / LATIN)
    with pytest.raises(
        UserError, match=r"working folder '.*caf\\udce9' has a name that is not UTF-8: rename it, or work"
    ):
        check_words([])
    monkeypatch.chdir(tmp_path / "café")
    check_words(["café"])
    (tmp_path / LATIN).rename(tmp_path / "gone")
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    check_words([])  # whatever is looked for there is missing, and is said to be


@pytest.mark.parametrize(
    "field",
    [
        "run.folder", "model.tokenizer", "model.weights", "data.cache_folder", "evaluation.dev.path", "run.select_on",
        "objectives.multilingual_text.sources.0.path", "objectives.code_switched.switching.dictionary",
        "objectives.code_switched.switching.languages",
    ],
)  # fmt: skip
def test_every_field_of_a_recipe_is_unicode(tiny: Path, field: str) -> None:
    value, place = ('["de", "\\ud800"]', f"{field}.1") if field.endswith("languages") else ('"\\ud800"', field)
    with pytest.raises(UserError, match=rf"has 1 mistake\(s\):\n  - {place}: '\\ud800' holds half a character"):
        load_recipe(tiny, [f"{field}={value}"])


def test_so_is_every_name_of_a_field_also_in_a_checkpoint(tmp_path: Path) -> None:
    raw = tiny_recipe(tmp_path)
    raw["run"]["\ud800"] = raw["\udfff"] = 1
    with pytest.raises(UserError, match=r"has 2 mistake\(s\):\n.*run: '\\ud800' holds .*\n.*field's name: '\\udfff'"):
        parse_recipe(raw, "state.json")


def test_a_run_in_a_folder_of_another_encoding_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its name is not UTF-8; rename the folder, or copy it to another"):
        open_run(tmp_path / LATIN)
