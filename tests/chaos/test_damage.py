"""Damaged checkpoints, full disks and read-only folders: an earlier checkpoint is used, or the message says what to do."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from m3p.checkpoints.files import STATE_FILE, prune, step_of
from m3p.checkpoints.read import newest_whole
from m3p.errors import UserError
from tests.chaos.harness import fork, newest_step, run
from tests.launch import ROOT, launch

ZERO = ROOT / "ds_configs" / "zero1.json"


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 ranks with checkpoints at 4 and 8."""
    folder = tmp_path_factory.mktemp("trained")
    settings = ("run.steps=12", "run.stop_after=8", "run.checkpoint_every=4", f"run.folder={folder / 'run'}")
    run(tiny, ZERO, 2, [], *settings, name="trained", folder=folder)
    return folder / "run"


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def flip(path: Path, place: int) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "share deleted": lambda step: (step / "rank-00001.safetensors").unlink(),
    "share truncated": lambda step: os.truncate(step / "rank-00000.safetensors", 1000),
    "byte of a share flipped": lambda step: flip(step / "rank-00001.safetensors", -7),
    "header of a share flipped": lambda step: flip(step / "rank-00000.safetensors", 30),
    "state deleted": lambda step: (step / STATE_FILE).unlink(),
    "state truncated": lambda step: os.truncate(step / STATE_FILE, 200),
    "step in the state changed": lambda step: (step / STATE_FILE).write_text(
        (step / STATE_FILE).read_text().replace('"step": 8', '"step": 9')
    ),
    "folder emptied": empty,
}


@pytest.mark.launcher
@pytest.mark.parametrize("what", DAMAGE)
def test_the_checkpoint_before_a_damaged_one_counts(copied: Path, what: str) -> None:
    assert newest_step(copied) == 8
    DAMAGE[what](copied / "checkpoints" / "step-00000008")
    newest, problems = newest_whole(copied)
    assert newest is not None
    assert newest.name == "step-00000004"
    assert len(problems) == 1
    assert "step-00000008" in problems[0]


@pytest.mark.launcher
@pytest.mark.parametrize("text", [None, "", "step-00000777\n", "../../etc\n"])
def test_latest_is_for_people(copied: Path, text: str | None) -> None:
    latest = copied / "checkpoints" / "latest"
    if text is None:
        latest.unlink()
    else:
        latest.write_text(text)
    assert newest_step(copied) == 8


@pytest.mark.launcher
def test_without_a_whole_one_the_run_is_not_started_anew(tiny: Path, copied: Path) -> None:
    for step in ("step-00000004", "step-00000008"):
        flip(copied / "checkpoints" / step / "rank-00000.safetensors", -7)
    done = launch(tiny, ZERO, 1, "run.steps=12", f"run.folder={copied}", check=False)
    assert done.returncode != 0
    assert "no checkpoint is whole" in done.stderr
    assert "Traceback" not in done.stderr.split("[ERROR]")[0]


@pytest.mark.launcher
def test_another_format_is_no_damage(copied: Path) -> None:
    path = copied / "checkpoints" / "step-00000008" / STATE_FILE
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "format_version": 99}))
    with pytest.raises(UserError, match="format 99, but this program reads 2"):
        newest_whole(copied)


@pytest.mark.launcher
def test_a_damaged_one_is_passed_over_and_replaced_and_a_change_is_refused_until_accepted(
    tiny: Path, copied: Path
) -> None:
    flip(copied / "checkpoints" / "step-00000008" / "rank-00001.safetensors", -7)
    settings = ("run.steps=12", "run.checkpoint_every=4", f"run.folder={copied}", "optimizer.beta2=0.9")
    done = launch(tiny, ZERO, 1, *settings, check=False)
    assert done.returncode != 0
    assert "optimizer.beta2: 0.98 then, 0.9 now" in done.stderr
    assert "run.accept_changes=true" in done.stderr
    done = launch(tiny, ZERO, 1, *settings, "run.accept_changes=true")
    assert "accepted change: optimizer.beta2: 0.98 then, 0.9 now" in done.stderr
    assert "not whole" in done.stderr
    assert "rank-00001.safetensors: its content is not what was written" in done.stderr
    assert [step_of(path) for path in sorted((copied / "checkpoints").glob("step-*"))] == [8, 12]
    assert newest_whole(copied)[1] == []
    assert not list((copied / "checkpoints").glob(".*"))
    assert not (copied / "stacks").exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is refused here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.launcher
def test_a_full_disk_keeps_the_earlier_checkpoint(tiny: Path, disk: Path, tmp_path: Path) -> None:
    settings = ("run.steps=40", "run.checkpoint_every=4", "run.keep_checkpoints=9", f"run.folder={disk / 'run'}")
    codes, text = fork(tiny, ZERO, 2, [], *settings, name="full", folder=tmp_path)
    assert any(codes)
    assert "are free, so none was written; the earlier ones are kept" in text
    assert "Traceback" not in text
    kept = newest_step(disk / "run")
    assert kept >= 4
    # With room again, it goes on.
    subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
    run(tiny, ZERO, 2, [], *settings, "run.stop_after=36", name="room", folder=tmp_path)
    assert newest_step(disk / "run") == 36


@pytest.mark.launcher
def test_a_read_only_folder_is_refused_before_anything_starts(tiny: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = launch(tiny, ZERO, 1, f"run.folder={disk / 'run'}", check=False)
    assert done.returncode != 0
    assert f"run.folder = {disk / 'run'}: cannot be written" in done.stderr


def test_kept_checkpoints(tmp_path: Path) -> None:
    for step in (*range(2, 22, 2), 24):
        (tmp_path / f"step-{step:08d}").mkdir()
    prune(tmp_path, 20, keep=2, keep_every=8)
    kept = [step_of(path) for path in sorted(tmp_path.iterdir())]
    assert kept == [
        8,
        16,
        18,
        20,
        24,
    ]  # one beyond the present step is a damaged one: it is replaced when it is its turn
