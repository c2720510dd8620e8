"""Pixels as numbers that a network can take."""

import torch
from torch import Tensor


def scaled(pixels: Tensor) -> Tensor:
    """Return pixels 0..255 (uint8) as float32 in -1..1, of the same shape: mid grey is nearly 0.

    In float32, whatever the network computes in: bf16 holds the pixels exactly, but not what is left of a mid grey after the
    subtraction. In place, since fresh memory costs more than the arithmetic.
    """
    return pixels.to(torch.float32, copy=True).div_(127.5).sub_(1)


def as_numbers(targets: Tensor) -> Tensor:
    """Return targets as float32: bytes are how pixels are carried (`scaled`), all else is numbers already."""
    return scaled(targets) if targets.dtype == torch.uint8 else targets.float()
