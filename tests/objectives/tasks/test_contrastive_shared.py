"""The contrastive loss of many pairs, of which each rank computes its own."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m3p.objectives.tasks import contrastive
from m3p.objectives.tasks.contrastive import Contrastive
from m3p.objectives.tasks.task import Targets
from tests.forked import numbered, run_forks
from tests.launch import environment, free_port

PAIRS = 41
SCALES = (20.0, contrastive.MAX_SCALE)
PROGRAM = Path(__file__).parent / "shared_ranks.py"


def turn(scale: float) -> tuple[Tensor, Targets]:
    """Return features [2, PAIRS, 16] and names. Pictures lie near their texts, so that the gradient raises the scale."""
    random = torch.Generator().manual_seed(1)
    texts, noise = F.normalize(torch.randn(2, PAIRS, 16, generator=random), dim=-1).unbind()
    names = {
        name: torch.randint(0, 4 * PAIRS, (PAIRS,), generator=random)
        for name in ("captions", *contrastive.NAMES_OF_PICTURES)
    }
    return torch.stack([texts * scale, F.normalize(texts + noise / 2, dim=-1)]), names


@pytest.mark.launcher
def test_ranks_that_share_it_find_what_one_does(tmp_path: Path) -> None:
    for ranks in (1, 2, 3):
        variables = numbered({**environment("cpu"), "MASTER_PORT": str(free_port())}, ranks)
        output = tmp_path / "output"
        codes = run_forks(PROGRAM, [[str(tmp_path)]] * ranks, variables, [(output, output)] * ranks, 60)
        assert not any(codes), output.read_text()[-5000:]
        found = [torch.load(tmp_path / f"{ranks}-{rank}.pt") for rank in range(ranks)]
        for scale in SCALES:
            features, targets = turn(scale)
            loss, gradient = Contrastive().loss_and_gradient(features, targets, None)
            assert all(torch.equal(one[scale][0], found[0][scale][0]) for one in found)
            assert float(found[0][scale][0]) == pytest.approx(float(loss), rel=1e-6)
            shared = sum(one[scale][1] for one in found)  # each rank's is zero in the rows of others
            assert (shared - gradient).norm() <= 1e-6 * gradient.norm(), (ranks, scale)


def test_few_pairs_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small turns give the same bits on any number of ranks; the threshold is the last size that is not shared."""
    features, targets = turn(20.0)
    loss, gradient = Contrastive().loss_and_gradient(features, targets, None)
    for most, shared in ((PAIRS, False), (PAIRS - 1, True)):
        monkeypatch.setattr(contrastive, "MAX_UNSHARED_PAIRS", most)
        found, of_own = Contrastive().loss_and_gradient(features, targets, torch.arange(5, 9))
        if not shared:
            assert torch.equal(found, loss)
            assert torch.equal(of_own, gradient)
        assert (of_own[:, 9:] == 0).all() == shared


def test_the_ceiling_of_the_scale_is_held_by_the_sum_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn around which texts raise the scale: the sum of all decides, also for a rank whose own sum says otherwise."""
    features, targets = turn(contrastive.MAX_SCALE)
    monkeypatch.setattr(contrastive, "MAX_UNSHARED_PAIRS", 1)
    own, along = torch.arange(PAIRS), []
    for of_others in (-1e6, 1e6):
        monkeypatch.setattr(contrastive, "all_reduce_sum", lambda one, more=of_others: one if one.dim() else one + more)
        _, gradient = Contrastive().loss_and_gradient(features, targets, own)
        along.append((features[0] * gradient[0]).sum(1))
    assert along[0].abs().max() < 1e-3 * along[1].abs().max()
