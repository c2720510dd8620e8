import numpy as np
import pytest
import torch

from m3p.batch import Batch, Sequence
from m3p.packing import Packer
from m3p.visual.regions import RegionTokens

WIDTH = 3


def small_batch() -> Batch:
    """Two words and a picture of two regions, with a target."""
    rng = np.random.default_rng(0)
    regions = RegionTokens(rng.random((2, WIDTH), np.float32), rng.random((2, 4), np.float32))
    packer = Packer(WIDTH)
    packer.add(Sequence(rng.integers(0, 100, 2), regions))
    packer.target("a", slots=np.array([1]))
    return packer.finish(1)


def test_moving_a_batch_moves_every_tensor() -> None:
    moved = small_batch().to(torch.device("meta"))
    assert moved.targets["a"]["slots"].is_meta
    assert all(value.is_meta for value in vars(moved).values() if isinstance(value, torch.Tensor))
    assert (moved.longest, moved.samples) == (4, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_memory_holds_the_same() -> None:
    batch = small_batch()
    pinned = batch.pin_memory()
    assert pinned.token_ids.is_pinned()
    assert pinned.targets["a"]["slots"].is_pinned()
    assert torch.equal(pinned.visual_features, batch.visual_features)
