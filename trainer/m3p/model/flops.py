"""Floating-point operations of training, from what a batch really holds: the formula behind MFU (arXiv 2204.02311, appendix B).

A multiplication of [n, a] by [a, b] costs 2nab; the backward costs twice the forward, but where nothing before it is
trained (the visual embedder), once. With w the width, f the feed-forward, n a sequence's length, the forward costs

    a slot:                layers * (8 w^2 + 4 w f)
    a sequence:            layers * 4 w n^2                 (attention: scores, and weights times values)
    a picture's token:     what its visual source says (`embedder_flops`, with the backward; and `pixel_flops` where pixels come)
    a term of a task:      what the task says (`flops`)

Of two towers (`model.encode_pictures: false`) slots and lengths are those of the words alone, since no picture token passes
through the encoder; of a frozen text encoder (`model.freeze: [text]`) the forward alone is computed.

Not counted: element-wise work, padding (there is none), layers computed again (`model.recompute`), the second forward
of a contrastive turn with several micro-batches, and that loss itself. So MFU is a lower bound of what the GPU does.

Others print `6ND` (arXiv 2001.08361): six operations a parameter and token. Over the parameters of the encoder it leaves out
attention and heads; over all parameters, of which two thirds are the word table here, it would say three times as much.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch

from m3p.batch import Batch
from m3p.model.config import ModelConfig
from m3p.model.encoder import EncoderShape
from m3p.model.heads import HeadOwner
from m3p.visual.source import VisualSource

FORMULA = (
    "3 x forward (1 x of a frozen text encoder): layers x (8 w^2 + 4 w f) a real slot, layers x 4 w n^2 a sequence, heads at "
    "what is asked alone; 6ND counts the encoder's parameters N at the same slots D"
)
"""How MFU is counted, to stand beside every figure: w is the width, f the feed-forward, n a sequence's length."""


@dataclass(frozen=True)
class Work:
    """What a batch asks of the network; sums over its sequences."""

    slots: float = 0
    squared_lengths: float = 0
    """Sum of n^2 over sequences."""
    words: float = 0
    """Slots that hold words; the others hold tokens of pictures."""
    squared_words: float = 0
    """Sum of the squared number of words over sequences."""
    visual_rows: float = 0
    """Rows that the visual embedder makes: tokens of a picture that several sequences show count once."""
    pixel_rows: float = 0
    """Those that it makes of pixels; the others come of features that are stored."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """Task -> terms of its loss."""

    @staticmethod
    def of(batch: Batch) -> "Work":
        """Read it from a batch on the CPU."""
        return Work(
            slots=batch.tokens,
            squared_lengths=int(batch.lengths.square().sum()),
            words=len(batch.token_ids),
            squared_words=int(batch.words.square().sum()),
            visual_rows=batch.embedded_rows,
            pixel_rows=batch.embedded_rows if batch.visual_features.dtype == torch.uint8 else 0,
            terms={name: len(next(iter(of.values()))) for name, of in batch.targets.items()},
        )

    def __add__(self, other: "Work") -> "Work":
        names = {**self.terms, **other.terms}
        terms = {name: self.terms.get(name, 0) + other.terms.get(name, 0) for name in names}
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in NUMBERS}, terms=terms)

    def __mul__(self, factor: float) -> "Work":
        terms = {name: number * factor for name, number in self.terms.items()}
        return Work(**{name: getattr(self, name) * factor for name in NUMBERS}, terms=terms)


NUMBERS = tuple(one.name for one in fields(Work) if one.name != "terms")
"""The fields of `Work` that are one number."""


@dataclass(frozen=True)
class NetworkSizes:
    """The sizes that heads, work and memory follow from."""

    shape: EncoderShape
    vocabulary: int
    feature_size: int = 0
    """Numbers that are predicted of a masked picture token; 0 without pictures."""
    classes: int = 0
    """Object classes of a picture token; 0 where there are none."""
    projection: int = 0
    """Size of the contrastive space."""
    picture_hidden: int = 0
    """Hidden units of the residual layer on pooled pictures; 0 where there is none."""
    embedder_flops: float = 0
    """Operations of forward and backward through the visual embedder, for a picture token."""
    pixel_flops: float = 0
    """Operations for a picture token that is made of pixels, where features may be stored instead."""
    pixel_memory: float = 0
    """Numbers that are kept for their backward."""
    pixel_working_memory: float = 0
    """Numbers that are in use at once, for such a token, while a frozen part looks at pixels."""
    term_flops: Mapping[str, float] = field(default_factory=dict)
    """Task -> operations of the forward through its head, for a term."""
    encodes_pictures: bool = True
    """Whether a picture's tokens pass through the encoder; else it sees words alone."""
    trains_text: bool = True
    """Whether the text encoder is trained; else it runs without a gradient, and keeps nothing for a backward."""
    trains_text_projection: bool = True
    """Whether the contrastive projection of texts is trained."""

    @property
    def encoder_weights(self) -> int:
        """The numbers in the matrices of the encoder's layers: N of `6ND`. Biases and norms are a thousandth of them."""
        shape, width = self.shape, self.shape.width
        return shape.layers * (4 * width**2 + 2 * width * shape.feed_forward)

    def training_flops(self, work: Work) -> float:
        """Return the operations of forward and backward over `work`. Raises KeyError for a task that the network has not."""
        shape, width = self.shape, self.shape.width
        slots, squares = (
            (work.slots, work.squared_lengths) if self.encodes_pictures else (work.words, work.squared_words)
        )
        encoder = 2 * self.encoder_weights * slots + shape.layers * 4 * width * squares
        heads = sum(self.term_flops[name] * number for name, number in work.terms.items())
        pictures = self.embedder_flops * work.visual_rows + self.pixel_flops * work.pixel_rows
        return (3 if self.trains_text else 1) * encoder + 3 * heads + pictures


def measure_network(
    config: ModelConfig, shape: EncoderShape, vocabulary: int, visual: VisualSource | None, tasks: Iterable[HeadOwner]
) -> NetworkSizes:
    """Return the sizes of the network with these parts."""
    sizes = NetworkSizes(
        shape,
        vocabulary,
        projection=config.projection or shape.width,
        picture_hidden=config.picture_hidden,
        encodes_pictures=config.encode_pictures,
        trains_text="text" not in config.freeze,
        trains_text_projection="text_projection" not in config.freeze,
    )
    if visual is not None:
        sizes = replace(
            sizes,
            feature_size=visual.target_size,
            classes=visual.target_classes,
            embedder_flops=visual.embedder_flops(shape.width),
            pixel_flops=visual.pixel_flops(),
            pixel_memory=visual.pixel_memory(),
            pixel_working_memory=visual.pixel_working_memory(),
        )
    return replace(sizes, term_flops={task.name: task.flops(sizes) for task in tasks})


def peak_flops(name: str, precision: torch.dtype) -> float | None:
    """Return the dense peak of the GPU called `name` (torch.cuda.get_device_name) in 16 bits; None where not known.

    In float32 there is no figure: what the GPU may use (TF32 or not) depends on settings.
    """
    gpu = gpu_called(name)
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
    bandwidth: float
    """TB/s of its memory."""
    float32: float
    """TFLOP/s of float32 without tensor cores."""
    card: int = 400
    """Gbit/s of the network card that each GPU has in a node of its maker, or is taken to have."""


# The makers' data sheets of each product; memory is what a driver leaves of it. The first whose words are in a name counts.
# Cards: DGX A100, H100, H200 and B200 data sheets (eight for eight GPUs: 200 Gbit/s in the first, 400 in the others).
# RTX 4090: 165.15 TFLOP/s in bf16 with float32 sums, 24 GB, 1,008 GB/s (waredb.com/processor/nvidia-geforce-rtx-4090; 165.5
# measured, README of github.com/JustAResearcher/gpu-unlock-ada). MI300X: 1,307.4 TFLOP/s, 192 GB, 5.3 TB/s (METHODOLOGY.md of
# github.com/alpharomercoma/MI300X-vs-H200), seven links with 448 GB/s in all one way (emergentmind.com/topics/amd-mi300x-gpu).
# V100: 125 TFLOP/s in fp16 (table of NVIDIA's whitepaper in maosong.website/p/nvidia-gpu-specs), 900 GB/s, NVLink 150 GB/s one
# way (Dell EMC Ready Solutions for AI, reference guide, page 17). B200: as in NVIDIA's HGX, 62 TB/s for eight.
GPUS = (
    Gpu("B200", 2250, 178, 900, 7.7, 75),
    Gpu("H200 NVL", 835, 139, 450, 4.8, 60),
    Gpu("H200", 989, 139, 450, 4.8, 67),
    Gpu("H100 PCIe", 756, 79, 64, 2.0, 51),
    Gpu("H100 NVL", 835, 93, 300, 3.9, 60),
    Gpu("H100", 989, 79, 450, 3.35, 67),
    Gpu("MI300X", 1307, 191, 448, 5.3, 163),
    Gpu("A100-SXM4-80GB", 312, 79, 300, 2.04, 19.5, 200),
    Gpu("A100 80GB", 312, 79, 32, 1.94, 19.5, 200),
    Gpu("A100", 312, 39, 300, 1.56, 19.5, 200),
    Gpu("V100", 125, 31, 150, 0.9, 15.7, 100),
    Gpu("L40S", 362, 44, 32, 0.864, 91.6),
    Gpu("RTX 4090", 165, 23, 32, 1.01, 82.6),
    Gpu("L4", 121, 22, 32, 0.3, 30.3),
    Gpu("A10", 125, 22, 32, 0.6, 31.2),
)


def gpu_called(name: str) -> Gpu | None:
    """Return the kind of GPU that the driver calls `name`, which may hold more words, in any case; None where not known."""
    if NOT_WHOLE.search(name):
        return None
    return next((gpu for gpu in GPUS if re.search(rf"\b{gpu.name}\b", name, re.IGNORECASE)), None)


NOT_WHOLE = re.compile(r"\bMIG\b|\bLaptop\b|\b4090 D\b", re.IGNORECASE)
"""Words in the names of GPUs that are slower than the product whose name they have, or that are a part of one."""
