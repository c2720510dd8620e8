"""Makes DeepSpeed use the process group that the ranks have joined (`m3p/distributed.py`)."""

import importlib
import logging
from datetime import timedelta

import deepspeed

from m3p.distributed import Ranks


def adopt_process_group(ranks: Ranks, timeout_seconds: float) -> None:
    """Hand torch's process group to DeepSpeed. Call it on every rank before `deepspeed.initialize`."""
    deepspeed.utils.logger.setLevel(logging.WARNING)
    if ranks.device.type == "cpu":
        # A C++ operation for inference only, built at start-up: it would need a compiler on every node.
        # (By its module's name: the attribute `deepspeed.comm.torch` is torch itself.)
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    deepspeed.init_distributed(
        dist_backend="nccl" if ranks.device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=timeout_seconds),
    )
