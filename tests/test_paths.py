"""Paths, URLs and names from a recipe: what they may be, and that passwords are shown nowhere."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from m3p.cli.train import train_command
from m3p.data.storage.cache import Cache
from m3p.data.storage.folders import open_folder
from m3p.errors import UserError
from m3p.paths import Address, as_file_name, file_name, masked, opened
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
    stored = parse_recipe(yaml.safe_load(dump_recipe(recipe)), "stored")
    again = stored.active_objectives["image_caption"].sources[0].path
    assert opened(again, "field") == f"https://alice:{SECRET}@host/shards"
    assert SECRET not in dump_recipe(recipe)


def test_signatures_in_urls_are_masked() -> None:
    shown = masked("GET https://host/a.tar?X-Amz-Signature=abc123&sig=%2Bxyz&list=1 failed")
    assert shown == "GET https://host/a.tar?X-Amz-Signature=***&sig=***&list=1 failed"
    assert masked("https://host:8080/a@b and s3://bucket/key") == "https://host:8080/a@b and s3://bucket/key"


@pytest.mark.parametrize(
    "url",
    [
        f"https://alice:p@ss{SECRET}@host/x",
        f"https://{SECRET}@host/x",
        f"https://host/x?auth={SECRET}&list=1",
        f"https://host/x?pwd={SECRET}",
        f"https://host/x?Passwd={SECRET}",
    ],
)
def test_secrets_are_masked_wherever_they_stand_in_a_url(tmp_path: Path, url: str) -> None:
    assert SECRET not in masked(f"GET {url}: failed")
    path = parse_recipe(with_source(tmp_path, url), "tiny").active_objectives["image_caption"].sources[0].path
    assert opened(path, "field") == url
    with pytest.raises(UserError, match="passwords are not stored"):
        opened(str(path), "field")


@pytest.mark.parametrize(
    "url", ["https://${NAME}@h/x", "https://u:${NAME}@h/x", "https://h/x?token=${NAME}&list=1", "sftp://u@h/x"]
)
def test_what_is_no_secret_is_shown(url: str) -> None:
    assert masked(url) == url


def test_training_takes_no_password_from_the_command_line() -> None:
    with pytest.raises(UserError, match=r"alice:\*\*\*@.* environment variable NAME") as caught:
        train_command("demo", overrides=[f"objectives.image_caption.sources.0.path={URL}"])
    assert SECRET not in str(caught.value)


WRONG_PATHS = {
    "a\0b": "character 0",
    "~no-such-user-here/x": "there is no user no-such-user-here",
    "$HOME/runs": "is not replaced here",
    "${SCRATCH}/runs": "is not replaced here",
    "runs/" + "x" * 300: "has 300 bytes",
    "": "is empty",
}


@pytest.mark.parametrize("path", WRONG_PATHS)
def test_a_path_that_names_no_folder_is_refused(tmp_path: Path, path: str) -> None:
    raw = tiny_recipe(tmp_path)
    raw["run"]["folder"] = path
    with pytest.raises(UserError, match=WRONG_PATHS[path]):
        parse_recipe(raw, "tiny")


@pytest.mark.parametrize("path", ["a\0b", "~no-such-user-here/x", "x" * 300])
def test_a_source_that_no_file_system_has_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="sources"):
        parse_recipe(with_source(tmp_path, path), "tiny")


def test_a_tilde_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    raw = with_source(tmp_path, "~/shards")
    recipe = parse_recipe(raw, "tiny", ["run.folder=~/runs/x", "data.cache_folder=~/cache"])
    assert recipe.run.folder == tmp_path / "runs/x"
    assert recipe.data.cache_folder == tmp_path / "cache"
    assert recipe.active_objectives["image_caption"].sources[0].path == str(tmp_path / "shards")


@pytest.mark.parametrize("name", ["../../x", "/x", ".x", "a/b", "", "a\nb", "x" * 200, "犬" * 90, "[/x]"])
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


@given(st.text(), st.text())
def test_any_text_has_a_file_of_its_own_in_the_folder(one: str, other: str) -> None:
    name = as_file_name(one)
    assert Path("folder", f"{name}.npz").parent == Path("folder")
    assert not name.startswith(".")
    assert 0 < len(name.encode()) <= 200
    assert (as_file_name(other) == name) == (other == one)


@pytest.mark.parametrize("text", ["../../evil", "..", "", "a/b", "con\nx", "\ud800", "犬" * 90])
def test_a_language_of_strangers_names_a_file_in_the_folder(text: str) -> None:
    assert Path("folder", f"{as_file_name(text)}.npz").parent == Path("folder")
    assert as_file_name("zh-Hant") == "zh-Hant"
