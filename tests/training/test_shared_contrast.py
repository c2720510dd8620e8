"""A run whose ranks share the contrastive loss, as they do where a turn has many pairs."""

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import run
from tests.launch import launch, metrics
from tests.test_equality import zero
from tests.training.watch.test_loss_guard import assert_nobody_waits


@pytest.mark.launcher
def test_two_ranks_that_share_it_train_as_one_and_wait_no_more(tiny: Path, tmp_path: Path) -> None:
    settings = ("run.steps=10", "objectives.code_switched=null", "objectives.multilingual_text=null")
    pairs = tmp_path / "pairs-"
    launch(tiny, zero(tmp_path, 0), 1, *settings, f"run.folder={tmp_path / 'one'}")
    faults: list[dict[str, Any]] = [
        {"point": "contrast", "file": str(pairs)},
        {"point": "collectives", "folder": str(tmp_path / "collectives")},
    ]
    run(tiny, zero(tmp_path, 2), 2, faults, *settings, f"run.folder={tmp_path / 'two'}", name="two", folder=tmp_path)
    seen = [Path(f"{pairs}{rank}").read_text().splitlines() for rank in range(2)]
    assert seen[0]
    for mine, other in zip(*seen, strict=True):
        (first, whole), (second, _) = (map(int, line.split()) for line in (mine, other))
        assert 0 < first < whole == first + second
    found, wanted = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert len(found) == len(wanted) == 10
    for one, other in zip(found, wanted, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-4)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
    assert_nobody_waits(tmp_path / "collectives", 2, refused=())
