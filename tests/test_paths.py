"""Paths, URLs and names from a recipe: what they may be, and that passwords are shown nowhere."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p.data.storage.cache import Cache
from m3p.data.storage.folders import open_folder
from m3p.errors import UserError
from m3p.paths import Address, file_name, masked, opened
from m3p.recipe.load import dump_recipe, parse_recipe
from tests.tiny import tiny_recipe

SECRET = "s3cr3tpw"
URL = f"http://alice:{SECRET}@127.0.0.1:9/shards"


def with_source(folder: Path, path: str) -> "dict[str, object]":
    raw = tiny_recipe(folder)
    raw["objectives"]["image_caption"]["sources"] = [{"path": path}]
    return raw


def test_a_password_opens_a_source_and_is_shown_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe(with_source(tmp_path, URL), "tiny")
    path = recipe.active_objectives["image_caption"].sources[0].path
    assert opened(path, "field") == URL
    for shown in (dump_recipe(recipe), repr(recipe), str(recipe.model_dump()), recipe.model_dump_json(), str(path)):
        assert SECRET not in shown
        assert "alice:***@" in shown
    monkeypatch.setattr("m3p.data.storage.folders.pause", lambda attempt: None)
    with pytest.raises(UserError, match="alice:\\*\\*\\*@") as caught:
        open_folder(path, Cache(tmp_path / "cache", 10**9), "field")
    assert SECRET not in str(caught.value)


def test_a_recipe_that_was_stored_asks_for_the_password(tmp_path: Path) -> None:
    stored = (
        parse_recipe(with_source(tmp_path, str(Address(URL))), "tiny")
        .active_objectives["image_caption"]
        .sources[0]
        .path
    )
    with pytest.raises(UserError, match="passwords are not stored with a run"):
        opened(stored, "field")


def test_a_variable_stands_in_for_a_password_and_stays_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = with_source(tmp_path, "https://alice:${M3P_TEST_PASSWORD}@host/shards")
    recipe = parse_recipe(raw, "tiny")
    path = recipe.active_objectives["image_caption"].sources[0].path
    monkeypatch.delenv("M3P_TEST_PASSWORD", raising=False)
    with pytest.raises(UserError, match="variable M3P_TEST_PASSWORD is not set"):
        opened(path, "field")
    monkeypatch.setenv("M3P_TEST_PASSWORD", SECRET)
    assert opened(path, "field") == f"https://alice:{SECRET}@host/shards"
    assert SECRET not in dump_recipe(recipe)


def test_signatures_in_urls_are_masked() -> None:
    shown = masked("GET https://host/a.tar?X-Amz-Signature=abc123&sig=%2Bxyz&list=1 failed")
    assert shown == "GET https://host/a.tar?X-Amz-Signature=***&sig=***&list=1 failed"
    assert masked("https://host:8080/a@b and s3://bucket/key") == "https://host:8080/a@b and s3://bucket/key"


def test_a_tilde_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    raw = with_source(tmp_path, "~/shards")
    recipe = parse_recipe(raw, "tiny", ["run.folder=~/runs/x", "data.cache_folder=~/cache"])
    assert recipe.run.folder == tmp_path / "runs/x"
    assert recipe.data.cache_folder == tmp_path / "cache"
    assert recipe.active_objectives["image_caption"].sources[0].path == str(tmp_path / "shards")


@pytest.mark.parametrize("name", ["../../x", "/x", ".x", "a/b", "", "a\nb", "x" * 200, "[/x]"])
def test_an_evaluation_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    raw = tiny_recipe(tmp_path)
    raw["evaluation"] = {name: next(iter(raw["evaluation"].values()))}
    with pytest.raises(UserError, match="becomes the name of a file"):
        parse_recipe(raw, "tiny")


@given(st.text())
def test_a_name_that_is_taken_names_a_file_in_the_folder(name: str) -> None:
    try:
        file_name(name)
    except ValueError:
        return
    assert Path("folder", f"{name}.json").parent == Path("folder")
    assert not name.startswith(".")
