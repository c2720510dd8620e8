"""Runs the trainer with the cure taken out: heads and embedders that a micro-batch does not use are not called."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from m3p.model import m3p


def _leave_alone(module: Callable[..., Tensor], *zeros: Tensor) -> Tensor:
    return torch.zeros(())


m3p._touch = _leave_alone  # mypy: same signature, so nothing to ignore

if __name__ == "__main__":
    sys.argv = [str(Path(__file__).parents[2] / "trainer" / "run.py"), *sys.argv[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
