"""The wheel in an environment of its own, outside the checkout, beside PyPI's `trainer`: from nothing to a table of recalls."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.launch import ROOT

pytestmark = pytest.mark.launcher


def run(*words: str | Path, cwd: Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a command without this checkout on Python's path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert not check or done.returncode == 0, f"{words}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and PyPI's `trainer`: the other packages are those of this one, the checkout is not there."""
    home = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", home, ROOT, cwd=home)
    run(sys.executable, "-m", "venv", "--without-pip", home / "venv", cwd=home)
    (packages,) = (home / "venv" / "lib").glob("python*/site-packages")
    # A line of a .pth adds a folder, but reads no .pth inside of it: so an editable installation of the checkout is left out.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = home.glob("m3p_trainer-*.whl")
    into = (*pip, "--python", home / "venv/bin/python", "install", "--no-deps", "--force-reinstall")
    run(*into, wheel, cwd=home)
    if run(*into, "trainer", cwd=home, check=False).returncode:
        pytest.skip("PyPI cannot be reached, and its package `trainer` is what this is about")
    return home / "venv" / "bin"


def test_it_is_another_package_than_pypis_trainer(environment: Path, tmp_path: Path) -> None:
    code = "import m3p, importlib.util as u; print(m3p.__file__); print(u.find_spec('trainer').origin)"
    ours, theirs = run(environment / "python", "-c", code, cwd=tmp_path).stdout.split()
    for path in (ours, theirs):
        assert Path(path).is_relative_to(environment.parent), path
    assert (Path(theirs).parent / "trainer.py").is_file()
    assert not Path(theirs).is_relative_to(Path(ours).parent)


def test_the_demo_runs_to_a_table_of_recalls(environment: Path, tmp_path: Path) -> None:
    run(
        environment / "m3p",
        "prepare",
        "scenes",
        "--output",
        "data_shards/scenes",
        "--train",
        "64",
        "--held-out",
        "10",
        cwd=tmp_path,
    )
    short = ("run.steps=3", "run.checkpoint_every=3", "schedule.warmup_steps=1")
    words = ("train", "--recipe", "demo", "--deepspeed_config", "zero1", "--ranks", "2", *short)
    done = run(environment / "m3p", *words, cwd=tmp_path)
    assert (tmp_path / "runs/demo/status").read_text() == "done\n"
    for column in ("R@1", "chance", "en", "de", "fr", "cs", "ja", "zh", "never captioned"):
        assert column in done.stdout, done.stdout[-4000:]
