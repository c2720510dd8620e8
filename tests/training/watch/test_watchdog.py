import faulthandler
import time
from pathlib import Path

import pytest

from m3p.training.watch.watchdog import Watchdog
from tests.chaos.harness import start
from tests.launch import ROOT


@pytest.mark.launcher
def test_a_stalled_rank_ends_the_run_and_every_rank_leaves_its_stacks(tiny: Path, tmp_path: Path) -> None:
    fault = [{"point": "stall", "step": 4, "rank": 1}]
    settings = ("run.stall_seconds=4", f"run.folder={tmp_path / 'run'}")
    job = start(tiny, ROOT / "ds_configs" / "zero1.json", 2, fault, *settings, name="run", folder=tmp_path)
    assert job.wait() != 0
    stacks = tmp_path / "run" / "stacks"
    # Rank 0 waits where it first needs what the other one computes: the features of the next turn.
    places = ["step 4, turn 10 (image_caption)", "step 4, turn 9 (multilingual_text)"]
    for rank, place in enumerate(places):
        assert (
            f"rank {rank}: stalled: no progress for 4 s at {place}: computing. The run ends; "
            f"{stacks / f'rank-{rank:05d}.txt'} shows where"
        ) in job.text()
    texts = [(tmp_path / "run" / "stacks" / f"rank-{rank:05d}.txt").read_text() for rank in range(2)]
    for text, place in zip(texts, places, strict=True):
        assert text.startswith(f"{place}: computing; longest wait 4 s")
        assert "trainer/m3p/training/train.py" in text
    assert "in all_reduce" in texts[0]
    assert "tests/chaos/runner.py" in texts[1]


def test_a_late_rank_says_so_once_and_one_that_goes_on_or_pauses_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: None)  # else this process would end
    watchdog = Watchdog(tmp_path, 3, first_seconds=0.6, seconds=0.6)
    for _ in range(4):
        watchdog.beat("step 1")
        time.sleep(0.3)
    with watchdog.paused():
        time.sleep(0.9)
    assert capsys.readouterr().err == ""
    time.sleep(2)
    said = capsys.readouterr().err
    assert said.count("rank 3: stalled: no progress for 0.6 s at step 1. The run ends") == 1
    assert str(tmp_path / "stacks" / "rank-00003.txt") in said
    watchdog.close()
