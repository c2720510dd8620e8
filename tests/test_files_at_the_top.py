"""Files at the top of the checkout that no program of this repository reads: container recipes, CI, citation, changelog."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import m3p
from tests.launch import ROOT


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile: its keyword and the rest, continued lines joined, comments left out."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def pinned() -> str:
    """Return what the containers install of requirements.txt, by the command that both of them hold."""
    (command,) = {
        found.group(1)
        for name in ("Dockerfile", "m3p.def")
        for found in re.finditer(r"(sed '[^']+')", (ROOT / name).read_text(encoding="utf-8"))
    }
    return subprocess.check_output([*shlex.split(command), str(ROOT / "requirements.txt")], text=True)


def test_containers_install_what_training_needs_and_no_tool_of_the_tests() -> None:
    names = {line.split("==")[0] for line in pinned().splitlines() if "==" in line}
    assert {"torch", "deepspeed", "transformers", "webdataset", "triton"} <= names
    assert not names & {"pytest", "mypy", "ruff", "hypothesis", "mkdocs-material"}


def test_the_dockerfile_copies_what_is_there_and_starts_the_command() -> None:
    found = instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    known = {"ARG", "FROM", "ENV", "SHELL", "RUN", "COPY", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in found} == known
    assert [word for word, _ in found][:2] == ["ARG", "FROM"]
    for word, rest in found:
        if word == "COPY":
            assert (ROOT / rest.split()[0]).exists(), rest
        if word in {"ENTRYPOINT", "CMD", "SHELL"}:
            assert all(isinstance(part, str) for part in json.loads(rest))
        if word == "RUN":
            subprocess.run(["sh", "-n"], input=rest, text=True, check=True)
    assert dict(found)["ENTRYPOINT"] == '["m3p"]'


def test_the_apptainer_definition_copies_what_is_there_and_its_steps_are_sound() -> None:
    text = (ROOT / "m3p.def").read_text(encoding="utf-8")
    head, *parts = re.split(r"^%(\w+)\n", text, flags=re.MULTILINE)
    assert "Bootstrap: docker\nFrom: python:" in head
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(sections) == ["files", "post", "environment", "runscript", "test"]
    for line in filter(str.strip, sections.pop("files").splitlines()):
        source, target = line.split()
        assert (ROOT / source).exists(), source
        assert target == f"/opt/m3p/{source}"
    for script in sections.values():
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_ci_runs_what_is_there() -> None:
    workflow = load(".github/workflows/ci.yml")
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    runs = [step["run"] for step in steps if "run" in step]
    assert any(run.endswith(".ci/run") for run in runs)
    assert (ROOT / ".ci/run").stat().st_mode & 0o100
    assert all(re.fullmatch(r"[\w./-]+@v\d+", step["uses"]) for step in steps if "uses" in step)


def test_the_version_is_said_alike_everywhere() -> None:
    assert load("CITATION.cff")["version"] == m3p.__version__
    assert m3p.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_checks_before_a_commit_use_the_version_that_ci_uses() -> None:
    hooks = {repo["repo"].rsplit("/", 1)[1]: repo["rev"] for repo in load(".pre-commit-config.yaml")["repos"]}
    (ruff,) = re.findall(r"^ruff==(\S+)$", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert hooks["ruff-pre-commit"] == f"v{ruff}"


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.md")), ids=lambda path: path.stem)
def test_issue_templates_have_what_makes_them_show(path: Path) -> None:
    _, head, body = path.read_text(encoding="utf-8").split("---\n", 2)
    assert {"name", "about"} <= yaml.safe_load(head).keys()
    assert body.strip()


def test_the_wheel_carries_every_file_of_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["m3p"]
    listed = subprocess.check_output(["git", "ls-files", "trainer/m3p"], cwd=ROOT, text=True).splitlines()
    package = ROOT / "trainer" / "m3p"
    others = [ROOT / name for name in listed if not name.endswith(".py")]
    left_out = [
        path for path in others
        if not path.is_dir() and not any(path.relative_to(package).match(pattern) for pattern in patterns)
    ]  # fmt: skip
    assert not left_out
    assert package / "search/serve/page.html" in others
