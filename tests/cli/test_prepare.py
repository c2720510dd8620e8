"""Of trainer/m3p/cli/prepare.py; named apart from tests/cli/test_main.py."""

import json
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from m3p.cli.prepare import index_command, prepare_app
from m3p.errors import UserError


def run(*words: object) -> str:
    result = CliRunner().invoke(prepare_app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    good = {"id": "a", "image": "a.png", "captions": {"en": "a square"}}
    (tmp_path / "a.jsonl").write_text(json.dumps(good) + "\n{broken\n")
    (tmp_path / "de.txt").write_text("Ein Satz.\n")
    (tmp_path / "en-de.tsv").write_text("dog\tHund\n")
    return tmp_path


def test_captions(raw: Path) -> None:
    with pytest.raises(UserError, match="line 2: broken JSON"):
        run("captions", raw / "a.jsonl", "--output", raw / "out")
    output = run("captions", raw / "a.jsonl", "--output", raw / "out", "--skip-bad")
    assert "skipped" in output
    assert "line 2: broken JSON" in output
    assert "1 samples in 1 shards; captions: en 1" in output
    output = run("captions", raw / "a.jsonl", "--output", raw / "web", "--skip-bad", "--caption-source", "web")
    assert "caption_source: web; captions_per_picture: 1" in output


def test_text_dictionary_and_tokenizer(raw: Path) -> None:
    (raw / "text").mkdir()
    (raw / "de.txt").rename(raw / "text" / "de.txt")
    assert "1 passages in 1 languages" in run("text", raw / "text", "--output", raw / "out" / "text")
    assert "de: 1 words, 1 pairs" in run("dictionary", raw, "--output", raw / "out" / "dictionary")
    (raw / "long.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 3)
    assert "pieces" in run("tokenizer", raw / "long.txt", "--output", raw / "out" / "model", "--vocabulary", 40)


@pytest.mark.long
def test_scenes_and_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "30 training and 5 held-out" in run("scenes", "--output", tmp_path / "s", "--train", 30, "--held-out", 5)
    (tmp_path / "s" / "dev" / "manifest.json").unlink()
    index_command(tmp_path / "s" / "dev", "captions")
    assert "5 samples in 1 shards" in capsys.readouterr().out


def test_every_command_says_what_it_is_for() -> None:
    commands = typer.main.get_command(prepare_app).commands  # type: ignore[attr-defined]
    assert commands.keys() >= {"captions", "dictionary", "scenes", "text", "tokenizer"}
    for command in commands.values():
        assert command.help
        assert all(getattr(parameter, "help", "x") for parameter in command.params)
