"""Checks commands of the documents with the parsers of the programs that they call, without running them."""

import argparse
import contextlib
import io
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from m3p.cli.main import app
from m3p.recipe.load import load_recipe
from m3p.training.deepspeed.config import read_deepspeed_config
from tests.docs.blocks import ROOT

SHELL = {"cd", "cp", "git", "grep", "printf", "source", "touch", "export", "mkdir", "tail"}
"""Commands of the shell that need no check."""
PLACEHOLDER = re.compile(r"^[A-Z][A-Z_0-9]*$|\.\.\.|^\[|\]$")
"""What stands for something of the reader's: RECIPE, DIR, [section.key=value ...]."""


class Wrong(Exception):
    """What is wrong with a command of the documents."""


def check(command: str) -> None:
    """Check one command line, each part of a pipe by itself. Raises Wrong."""
    for part in re.split(r"\s(?:\||&&)\s", command):
        words = shlex.split(part)
        while words and re.match(r"^\w+=", words[0]):
            words = words[1:]
        if words:
            _check_words(words)


def _check_words(words: list[str]) -> None:
    name, arguments = Path(words[0]).name, words[1:]
    checks: dict[str, Callable[[list[str]], None]] = {
        "m3p": check_m3p,
        "deepspeed": _deepspeed,
        "torchrun": _torchrun,
        "srun": lambda given: _check_words(_without_options(given)),
        "sbatch": _sbatch,
        "bash": _script,
        "python": _python,
        "pip": _pip,
        "docker": _container,
        "apptainer": _container,
    }
    if words[0].startswith("./"):
        _script(words)
    elif name in checks:
        checks[name](arguments)
    elif name not in SHELL and shutil.which(name) is None:
        raise Wrong(f"{name} is no program that comes with this one")


def m3p_command(words: list[str]) -> tuple[TyperCommand | TyperGroup, list[str]]:
    """Return the command that `m3p WORDS` runs, and the words behind its name. Raises Wrong."""
    found: Any = typer.main.get_command(app)
    rest = words
    while isinstance(found, TyperGroup) and rest and not rest[0].startswith("-"):
        if rest[0] not in found.commands:
            raise Wrong(f"m3p has no command {' '.join(words)!r}; it has {', '.join(found.commands)}")
        found, rest = found.commands[rest[0]], rest[1:]
    return found, rest


def check_m3p(words: list[str]) -> None:
    """Parse `m3p WORDS` as the program does; a shipped recipe that it names must load with its overrides. Raises Wrong."""
    command, rest = m3p_command([word for word in words if not word.startswith("[") and word != "..."])
    if isinstance(command, TyperGroup):
        return _options(command, rest)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            context = command.make_context("m3p", list(rest))
    except typer.Exit:  # --help
        return None
    except Exception as error:  # typer brings its own copy of click, and its names are private
        if not hasattr(error, "format_message"):
            raise
        raise Wrong(f"m3p {' '.join(words)}: {error.format_message()}") from error
    return _names_files(context.params)


def _options(command: TyperCommand | TyperGroup, words: list[str]) -> None:
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word.startswith("-") and word.partition("=")[0] not in known:
            raise Wrong(f"m3p has no option {word}")


def _names_files(given: dict[str, Any]) -> None:
    recipe, ds_config = given.get("recipe"), given.get("deepspeed_config")
    if recipe and not PLACEHOLDER.search(str(recipe)):
        _loads(str(recipe), list(given.get("overrides") or []))
    if ds_config and not PLACEHOLDER.search(str(ds_config)):
        _reads(str(ds_config))


def _loads(recipe: str, overrides: list[str]) -> None:
    """A recipe of the reader's own (mine.yaml, runs/NAME/recipe.yaml) cannot be here; one of ours must load."""
    if recipe.startswith("trainer/") or not recipe.endswith(".yaml"):
        path = _shipped(recipe, ROOT / "trainer" / "m3p" / "recipes", ".yaml")
        load_recipe(path, [word for word in overrides if not PLACEHOLDER.search(word)])


def _reads(ds_config: str) -> None:
    if ds_config.startswith("ds_configs/") or not ds_config.endswith(".json"):
        read_deepspeed_config(_shipped(ds_config, ROOT / "ds_configs", ".json"))


def _shipped(name: str, folder: Path, suffix: str) -> Path:
    """Return the file that a path in the checkout or a bare name, such as demo or zero1, leads to. Raises Wrong."""
    path = ROOT / name if os.sep in name else folder / f"{name}{suffix}"
    if not path.is_file():
        raise Wrong(
            f"{name} does not exist; {folder} has {', '.join(sorted(p.stem for p in folder.glob('*' + suffix)))}"
        )
    return path


def _deepspeed(words: list[str]) -> None:
    from deepspeed.launcher.runner import parse_args

    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            options = parse_args(words)
    except SystemExit as error:
        raise Wrong(f"deepspeed {' '.join(words)}: {said.getvalue().strip()}") from error
    _trainer([options.user_script, *options.user_args])


def _torchrun(words: list[str]) -> None:
    _trainer(_without_options(words))


def _trainer(words: list[str]) -> None:
    """Check `trainer/run.py --recipe ... --deepspeed_config ... [section.key=value ...]`."""
    if words[0] != "trainer/run.py":
        raise Wrong(f"{words[0]} is not trainer/run.py")
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--deepspeed_config", required=True)
    parser.add_argument("overrides", nargs="*")
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            options = parser.parse_intermixed_args([word for word in words[1:] if not PLACEHOLDER.search(word)])
    except (SystemExit, argparse.ArgumentError) as error:
        raise Wrong(f"{' '.join(words)}: {error} {said.getvalue().strip()}") from error
    _names_files(vars(options))


def _sbatch(words: list[str]) -> None:
    script, *rest = _without_options(words)
    _script([script])
    if Path(script).name in ("pretrain.sh", "finetune.sh"):
        if len(rest) < 2:
            raise Wrong(f"{script} wants RECIPE DS_CONFIG")
        _names_files({"recipe": rest[0], "deepspeed_config": rest[1], "overrides": rest[2:]})
    else:
        check_m3p(["evaluate", *rest])


def _script(words: list[str]) -> None:
    """A script of the checkout exists; `bash -n` reads all of them in a test of its own, since it starts a program."""
    if not (ROOT / words[0]).is_file():
        raise Wrong(f"{words[0]} does not exist")


def _python(words: list[str]) -> None:
    """A program of the checkout exists, and each of its options stands in its text."""
    if words[0] == "-m":
        if words[1] not in ("venv", "pip", "mkdocs", "pytest"):
            raise Wrong(f"python -m {words[1]} is not known here")
        return None
    if words[0] == "trainer/run.py":
        return _trainer(words)
    path = ROOT / words[0]
    if not path.is_file():
        raise Wrong(f"{words[0]} does not exist")
    text = path.read_text(encoding="utf-8")
    for word in words[1:]:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in text:
            raise Wrong(f"{words[0]} has no option {option}")
    return None


def _pip(words: list[str]) -> None:
    """Extras exist in pyproject.toml, and so do files of requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        extras = re.search(r"\[([\w,-]+)\]", word)
        for extra in extras[1].split(",") if extras else []:
            if extra not in project.get("optional-dependencies", {}):
                raise Wrong(f"pyproject.toml has no extra {extra}")
        if word.endswith(".txt") and not (ROOT / word).is_file():
            raise Wrong(f"{word} does not exist")


def _container(words: list[str]) -> None:
    """A recipe of a container that is named exists in the checkout."""
    if words[0] == "build":
        files = [word for word in words if word.endswith((".def", "Dockerfile"))] or ["Dockerfile"]
        for name in files:
            if not (ROOT / name).is_file():
                raise Wrong(f"{name} does not exist")


def _without_options(words: list[str]) -> list[str]:
    """Drop the launcher's own options, written --name=value."""
    rest = [word for word in words if not word.startswith("-")]
    if not rest:
        raise Wrong(f"{' '.join(words)}: no program")
    return rest[1:] if Path(rest[0]).name == "python" else rest
