import numpy as np
import pytest
import torch

from m3p.batch import Sequence
from m3p.model.encoder import EncoderShape
from m3p.model.flops import NetworkSizes
from m3p.packing import Packer
from m3p.training.watch.throughput import Throughput, peak_memory

SIZES = NetworkSizes(EncoderShape(layers=2, width=64, heads=2), 100)


def test_a_cpu_has_teraflops_and_no_mfu() -> None:
    throughput = Throughput(SIZES, torch.device("cpu"), torch.float32, 2, partly=False)
    figures = throughput.figures(3 * 10**12, 5, 2.0)
    assert figures.keys() == {"teraflops", "peak_memory_gib"}
    assert figures["teraflops"] == 1.5


@pytest.mark.parametrize("frozen", [False, True])
def test_a_gpu_has_its_share_of_the_peak_of_all_ranks(monkeypatch: pytest.MonkeyPatch, frozen: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    throughput = Throughput(SIZES, torch.device("cuda"), torch.bfloat16, 4, frozen)
    weights = 2 * (4 * 64**2 + 2 * 64 * 3072)
    figures = throughput.figures(989 * 10**12, 989 * 10**12 // (12 * weights), 0.5)
    assert figures.get("mfu") == (None if frozen else pytest.approx(0.5))
    assert figures.get("mfu_6nd") == (None if frozen else pytest.approx(0.25))
    assert figures["peak_memory_gib"] == 3


def test_what_a_rank_forwards_to_keep_in_step_is_no_work() -> None:
    throughput = Throughput(SIZES, torch.device("cpu"), torch.float32, 1, partly=False)
    packer = Packer(1)
    packer.add(Sequence(np.zeros(5, np.int64)))
    assert throughput.flops(packer.finish(1)) > 0
    assert throughput.flops(Packer(1).finish(0)) == 0


@pytest.mark.long
def test_peak_memory_remembers_what_is_gone() -> None:
    before = peak_memory(torch.device("cpu"))
    torch.ones(before // 8 + (64 << 20))  # 4 bytes each: half of what there is, and 256 MiB
    assert peak_memory(torch.device("cpu")) > before
