"""The commands that start runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import m3p
from m3p.cli.main import app
from m3p.cli.train import default_ranks, threads_of_job, train_program
from m3p.errors import UserError
from tests.launch import ROOT, metrics


def command(*words: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Run `m3p WORDS` to its end."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "trainer")}
    return subprocess.run(
        [sys.executable, "-m", "m3p", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.program
def test_the_version_is_said_without_loading_torch() -> None:
    done = command("--version")
    assert done.stdout == f"m3p {m3p.__version__}\n"


@pytest.mark.program
def test_recipes_are_listed_with_a_line_each() -> None:
    lines = command("recipes").stdout.splitlines()
    assert any(line.startswith("demo ") and "CPU" in line for line in lines)


def test_more_ranks_than_a_machine_can_have_are_refused() -> None:
    for words in (["train", "--ranks", "100000"], ["finetune", "demo", "--ranks", "100000"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert "1024" in result.output


@pytest.mark.program
def test_the_batch_scripts_are_written_once(tmp_path: Path) -> None:
    assert command("slurm", str(tmp_path)).returncode == 0
    assert (tmp_path / "slurm/pretrain.sh").read_bytes() == (ROOT / "slurm/pretrain.sh").read_bytes()
    again = command("slurm", str(tmp_path))
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_ranks_are_started_on_ports_of_their_own() -> None:
    ports = {train_program(2)[train_program(2).index("--master_port") + 1] for _ in range(4)}
    assert len(ports) > 1
    assert default_ranks() >= 1


def test_no_process_of_a_run_imports_from_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text("print('executed')")
    command = train_program(1)
    python = command[: command.index("-m")]
    child = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-m', 'stranger']).returncode)"
    for words in (["-m", "stranger"], ["-c", child]):
        done = subprocess.run([*python, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1, words
        assert "No module named stranger" in done.stderr


def test_runs_side_by_side_share_the_processors_and_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [threads_of_job(jobs, ranks) for jobs, ranks in ((2, 1), (2, 2), (3, 4))] == [4, 2, 1]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UserError, match=r"--jobs 2: .*--ranks"):
        threads_of_job(2, 1)


@pytest.mark.program
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recipe", "dem"), "did you mean demo?"),
        (("--recipe", "demo", "--deepspeed_config", "zero9"), "There are: zero0, zero1"),
    ],
)
def test_wrong_names_start_nothing(words: tuple[str, ...], message: str) -> None:
    done = command("train", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


@pytest.mark.launcher
def test_train_starts_ranks_and_their_exit_code_is_its_own(tiny: Path, tmp_path: Path) -> None:
    words = ("train", "--recipe", str(tiny), "--deepspeed_config", "zero1", "--ranks", "2")
    done = command(*words, f"run.folder={tmp_path / 'run'}", "run.steps=2", "schedule.warmup_steps=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(metrics(tmp_path / "run")) == 2
    wrong = command(*words, "run.steps=many", cwd=tmp_path)
    assert wrong.returncode != 0
    assert wrong.stderr.count("run.steps = 'many'") == 1


@pytest.mark.launcher
def test_launchers_that_hand_over_a_local_rank_are_understood(tiny: Path, tmp_path: Path) -> None:
    """torch.distributed.launch says --local-rank, older ones --local_rank."""
    for number, option in enumerate(("--local-rank=0", "--local_rank=0")):
        words = [
            sys.executable,
            str(ROOT / "trainer/run.py"),
            option,
            "--recipe",
            str(tiny),
            "--deepspeed_config",
            "zero0",
        ]
        words += [f"run.folder={tmp_path / str(number)}", "run.steps=1", "schedule.warmup_steps=0"]
        done = subprocess.run(
            words, env={**os.environ, "DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
