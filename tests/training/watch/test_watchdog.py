from pathlib import Path

import pytest

from tests.chaos.harness import start
from tests.launch import ROOT


@pytest.mark.launcher
def test_a_stalled_rank_ends_the_run_and_every_rank_leaves_its_stacks(tiny: Path, tmp_path: Path) -> None:
    fault = [{"point": "stall", "step": 4, "rank": 1}]
    settings = ("run.stall_seconds=4", f"run.folder={tmp_path / 'run'}")
    job = start(tiny, ROOT / "ds_configs" / "zero1.json", 2, fault, *settings, name="run", folder=tmp_path)
    assert job.wait() != 0
    texts = [(tmp_path / "run" / "stacks" / f"rank-{rank:05d}.txt").read_text() for rank in range(2)]
    for text in texts:
        assert text.startswith("step 4, turn 9 (multilingual_text): computing; longest wait 4 s")
        assert "trainer/m3p/training/train.py" in text
    assert "in all_reduce" in texts[0]
    assert "tests/chaos/runner.py" in texts[1]
