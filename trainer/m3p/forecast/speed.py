"""How fast GPUs, the program beside them and what joins them are taken to be: measured on one H200, and estimated elsewhere."""

from m3p.model.flops import GPUS, Gpu
from m3p.objectives.tasks.contrastive import MAX_UNSHARED_PAIRS

MEASURED = next(gpu for gpu in GPUS if gpu.name == "H200")
"""The kind on which `EFFICIENCY` was measured."""
EFFICIENCY = 0.33
"""Share of the peak that computing reaches on an H200 with 512 samples a micro-batch. No other GPU was measured so far."""
MEMORY_BOUND = 0.25
"""Share of that computing that waits for the GPU's memory: norms, GELU, dropout, gathering, AdamW. An estimate, by their
bytes."""
UNEVEN = 0.06
"""Share by which the rank with the most tokens computes longer than the mean: 3 to 4 % on 8 ranks and 6 to 8 % on 64, of samples
that are shared out by length (`benchmarks/even_work.py`, 16 samples a rank and turn)."""
HOST = 0.0029
"""Seconds of a layer and micro-batch that Python takes to launch forward and backward; a GPU with less to do waits for it. From
the median of `benchmarks/step.py` on an H200 beside an Intel Xeon, with 128 samples a micro-batch, half of what fills it."""
BUS = 0.8
"""Share of a link that NCCL's large sums reach: 360 GB/s of the 450 that an H100's NVLink has."""
NETWORK = 340 / 400
"""GB/s that they reach between nodes, for each Gbit/s of a GPU's card: the eight cards of a node work in parallel rings, so
nodes with 400 Gbit/s a GPU reach 340 GB/s with buckets of 100 MB."""
NODE = 8
"""GPUs of a node."""
PAIRS = 0.5
"""Share of the float32 peak that the products of the contrastive loss are taken to reach. An estimate."""


def efficiency(kind: Gpu) -> float:
    """Return the share of the peak that computing is taken to reach: less where memory is slower beside the peak."""
    slower = (kind.teraflops / kind.bandwidth) / (MEASURED.teraflops / MEASURED.bandwidth)
    return EFFICIENCY / (1 + MEMORY_BOUND * (slower - 1))


def bus_bandwidth(kind: Gpu, ranks: int) -> float:
    """Return the bytes a second of NCCL's large sums: the "bus bandwidth" of its tests."""
    inside = BUS * kind.interconnect
    return (inside if ranks <= NODE else min(inside, NETWORK * kind.card)) * 1e9


def pair_seconds(pairs: int, size: int, ranks: int, kind: Gpu) -> float:
    """Return the seconds of the contrastive loss of `pairs` of a turn, and of its gradient, with features of `size` numbers.

    Products of features are as many as kernels/pair_cross_entropy_shared.py says: a rank computes all of few pairs, and its own
    of many. All ranks get the features of all pairs, by a sum in float32 (training/gradient_cache.py), which sends twice their
    bytes.
    """
    products = 6 * pairs**2 / ranks if ranks > 1 and pairs > MAX_UNSHARED_PAIRS else 4 * pairs**2
    computing = 2 * size * products / (PAIRS * kind.float32 * 1e12)
    features = 2 * pairs * size * 4
    return computing + 2 * features * (1 - 1 / ranks) / bus_bandwidth(kind, ranks)
