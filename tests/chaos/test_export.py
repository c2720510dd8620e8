"""The exported folder of a scattered run computes what the run itself computes."""

from pathlib import Path

import pytest
import torch

from m3p.export import export_run
from tests.chaos.harness import run
from tests.test_equality import zero

TOKENS = [0, 7, 9, 12, 5, 31, 8, 2]


@pytest.mark.launcher
def test_logits_of_a_zero_3_run_on_two_ranks_are_those_of_plain_transformers(tiny: Path, tmp_path: Path) -> None:
    from transformers import XLMRobertaForMaskedLM

    fault = [{"point": "logits", "tokens": TOKENS, "file": str(tmp_path / "logits-")}]
    settings = ("run.steps=8", f"run.folder={tmp_path / 'run'}")
    run(tiny, zero(tmp_path, 3), 2, fault, *settings, name="run", folder=tmp_path)
    export_run(tmp_path / "run", tmp_path / "exported")
    model = XLMRobertaForMaskedLM.from_pretrained(tmp_path / "exported").eval()
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0]
    for rank in range(2):
        ours = torch.load(tmp_path / f"logits-{rank}", weights_only=True)
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-5
    assert theirs.std() > 0.01
