"""Floating-point operations of training, from what a batch really holds: the formula behind MFU (arXiv 2204.02311, appendix B).

A multiplication of [n, a] by [a, b] costs 2nab; the backward costs twice the forward, but where nothing before it is
trained (the region embedder), once. With w the width, f the feed-forward, n a sequence's length, the forward costs

    a slot:                layers * (8 w^2 + 4 w f)
    a sequence:            layers * 4 w n^2                 (attention: scores, and weights times values)
    a picture's token:     2 w (F + 5), or 2 w F of patches
    a masked word:         2 w^2 + 2 w vocabulary
    a masked region:       2 w F + 2 w^2 + 2 w classes
    a matched pair:        2 w^2 + 2 w
    a contrasted pair:     4 w projection

Not counted: element-wise work, padding (there is none), layers computed again (`model.recompute`), the second forward
of a contrastive turn with several micro-batches, and that loss itself. So MFU is a lower bound of what the GPU does.
"""

import re
from dataclasses import dataclass, fields

import torch

from m3p.batch import Batch
from m3p.model.encoder import EncoderShape


@dataclass(frozen=True)
class Work:
    """What a batch asks of the network; sums over its sequences."""

    slots: float = 0
    squared_lengths: float = 0
    """Sum of n^2 over sequences."""
    visual_rows: float = 0
    """Rows that the visual embedder takes: tokens of a picture that several sequences show count once."""
    masked_words: float = 0
    masked_regions: float = 0
    matched: float = 0
    contrasted: float = 0

    @staticmethod
    def of(batch: Batch) -> "Work":
        """Read it from a batch on the CPU."""
        counts = {name: len(next(iter(of.values()))) for name, of in batch.targets.items()}
        return Work(
            slots=batch.tokens,
            squared_lengths=int(batch.lengths.square().sum()),
            visual_rows=batch.embedded_rows,
            masked_words=counts.get("masked_words", 0),
            masked_regions=counts.get("masked_regions", 0),
            matched=counts.get("matching", 0),
            contrasted=counts.get("contrastive", 0),
        )

    def __add__(self, other: "Work") -> "Work":
        return Work(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)})

    def __mul__(self, factor: float) -> "Work":
        return Work(**{f.name: getattr(self, f.name) * factor for f in fields(Work)})


@dataclass(frozen=True)
class NetworkSizes:
    """The sizes that work and memory follow from."""

    shape: EncoderShape
    vocabulary: int
    feature_size: int = 0
    """Of a picture's token; 0 without pictures."""
    box_size: int = 0
    """Inputs that a region embedder takes besides: 5, or 0 of patches."""
    classes: int = 0
    projection: int = 0

    def training_flops(self, work: Work) -> float:
        """Return the operations of forward and backward over `work`."""
        shape, width = self.shape, self.shape.width
        embedder = 2 * width * (self.feature_size + self.box_size) * work.visual_rows
        slot = shape.layers * (8 * width**2 + 4 * width * shape.feed_forward)
        classes = 2 * width**2 + 2 * width * self.classes if self.classes else 0
        forward = (
            slot * work.slots
            + shape.layers * 4 * width * work.squared_lengths
            + (2 * width**2 + 2 * width * self.vocabulary) * work.masked_words
            + (2 * width * self.feature_size + classes) * work.masked_regions
            + (2 * width**2 + 2 * width) * work.matched
            + 4 * width * self.projection * work.contrasted
        )
        return 3 * forward + 2 * embedder


def peak_flops(name: str, precision: torch.dtype) -> float | None:
    """Return the dense peak of the GPU called `name` (torch.cuda.get_device_name) in 16 bits; None where not known.

    In float32 there is no figure: what the GPU may use (TF32 or not) depends on settings.
    """
    gpu = next((gpu for gpu in GPUS if re.search(rf"\b{gpu.name}\b", name)), None)
    return None if gpu is None or precision == torch.float32 else gpu.teraflops * 1e12


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, by words of its name."""

    name: str
    teraflops: float
    """Dense bf16 (V100: fp16) with tensor cores, as its maker's data sheet says; figures "with sparsity" are halved."""
    memory_gib: float
    interconnect: float
    """GB/s to the other GPUs of its node, one way; of PCIe where there is no NVLink."""


# NVIDIA's data sheets of each product; memory is what a driver leaves of it. The first whose words are in a name counts.
GPUS = (
    Gpu("B200", 2250, 178, 900),
    Gpu("H200", 989, 139, 450),
    Gpu("H100 PCIe", 756, 79, 64),
    Gpu("H100 NVL", 835, 93, 300),
    Gpu("H100", 989, 79, 450),
    Gpu("A100-SXM4-80GB", 312, 79, 300),
    Gpu("A100 80GB", 312, 79, 32),
    Gpu("A100", 312, 39, 300),
    Gpu("V100", 125, 31, 150),
    Gpu("L40S", 362, 44, 32),
    Gpu("L4", 121, 22, 32),
    Gpu("A10", 125, 22, 32),
)
