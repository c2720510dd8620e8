"""trainer/run.py as a program: what comes before and after the training, and who says a mistake."""

import subprocess
from pathlib import Path

import pytest

from tests.launch import ROOT, alone

pytestmark = pytest.mark.program

RUN = ROOT / "trainer" / "run.py"
# Stands in front of run.py: an evaluation that Slurm's warning meets, and that says what status it ran under.
SIGNALLED = f"""
import os, runpy, signal, sys
import m3p.retrieval.evaluate as evaluate
def evaluate_run(folder):
    os.kill(os.getpid(), signal.SIGUSR1)
    print("evaluated; status is there:", (folder / "status").exists())
    {{what}}
evaluate.evaluate_run = evaluate_run
sys.argv[0] = {str(RUN)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# A disk that fills while TensorBoard's thread writes to it.
FULL = f"""
import errno, os, runpy, sys
from tensorboard.summary.writer.record_writer import RecordWriter
written = []
def write(self, data, real=RecordWriter.write):
    written.append(data)
    if len(written) > 60:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(self, data)
RecordWriter.write = write
sys.argv[0] = {str(RUN)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# A rank that says nothing waits so that another one can: here is no other.
QUICK = f"""
import runpy, sys
from m3p.training import main
main.UNTIL_SAID = 0.0
sys.argv[0] = {str(RUN)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(
    recipe: Path, folder: Path, *overrides: str, code: str = "", **more: str
) -> "subprocess.CompletedProcess[str]":
    """Train two steps into `folder` on one rank, through `code` if there is some, and wait for the end."""
    program = RUN
    if code:
        program = folder.with_suffix(".py")
        program.write_text(code)
    words = ["--recipe", str(recipe), "--deepspeed_config", str(ROOT / "ds_configs" / "zero1.json")]
    words += [f"run.folder={folder}", "run.steps=2", "schedule.warmup_steps=0", *overrides]
    return alone(program, *words, **more)


def test_a_recipe_without_evaluations_ends_well(tiny: Path, tmp_path: Path) -> None:
    done = start(tiny, tmp_path / "run", "run.evaluate=true", "evaluation={}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "status").read_text() == "done\n"


def test_a_run_is_done_when_its_evaluation_is_and_no_warning_ends_that(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lost = start(tiny, folder, "run.evaluate=true", code=SIGNALLED.format(what="os._exit(9)"))
    assert lost.returncode == 9, lost.stderr[-3000:]
    assert not (folder / "status").exists()
    again = start(tiny, folder, "run.evaluate=true", code=SIGNALLED.format(what=""))
    assert again.returncode == 0, again.stderr[-3000:]
    assert "evaluated; status is there: False" in again.stdout
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "status").read_text() == "done\n"


def test_a_stop_is_said_and_a_stop_file_left_behind_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = start(tiny, folder, "run.stop_after=1")
    assert "stopped after step 1: run.stop_after\n" in done.stderr
    (folder / "STOP").touch()
    refused = start(tiny, folder)
    assert refused.returncode == 2
    assert f"error: {folder / 'STOP'} is there" in refused.stderr
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    assert (folder / "status").read_text() == "stopped planned 1\n"


def test_a_disk_that_fills_between_checkpoints_is_one_line(tiny: Path, tmp_path: Path) -> None:
    done = start(tiny, tmp_path / "run", "run.steps=9", code=FULL)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "error: No space left on device; free some, or write elsewhere; starting again goes on" in done.stderr


def test_a_folder_where_the_run_keeps_a_file_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "incarnation").mkdir(parents=True)
    done = start(tiny, tmp_path / "run")
    assert done.returncode == 2
    assert f"{tmp_path / 'run' / 'incarnation'} is a folder, where the run keeps a file; move it away" in done.stderr


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0"}, "error: "),
        ({"RANK": "1", "LOCAL_RANK": "1"}, ""),
        ({"RANK": "8", "LOCAL_RANK": "0"}, "rank 8: error: "),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "0"}, "rank 3: error: "),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, ""),
    ],
)
def test_one_rank_of_each_node_says_a_mistake(tmp_path: Path, numbers: dict[str, str], says: str) -> None:
    done = start(tmp_path / "none.yaml", tmp_path / "run", code=QUICK, **numbers)
    assert done.returncode == 2
    assert done.stderr.startswith(says)
    assert done.stderr.count("error: ") == bool(says)
