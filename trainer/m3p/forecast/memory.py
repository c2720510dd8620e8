"""Memory of one rank, by part, before anything runs: what `m3p plan` prints.

Weights, gradients and optimizer follow from the ZeRO stage and what DeepSpeed 0.19 allocates (runtime/zero/stage_1_and_2.py,
stage3.py; the idea is that of its memory estimators, which leave out buffers, activations and the head). Activations
follow from the tensors that autograd keeps for a layer, counted in `model/encoder.py`.
"""

from dataclasses import dataclass
from typing import Any

from m3p.kernels.pair_cross_entropy import MAX_CELLS
from m3p.model.flops import NetworkSizes, Work
from m3p.objectives.tasks import TASKS
from m3p.objectives.tasks.contrastive import MAX_UNSHARED_PAIRS
from m3p.training.deepspeed.config import MIN_PART, sums_on_owners

FULL = 4
"""Bytes of a float32 number."""
CELL = 26
"""Bytes that the contrastive loss takes at its peak for each logit that exists at once, measured at 3,000 to 8,192 pairs on one
rank; shared by ranks, it was less in most runs."""


@dataclass(frozen=True)
class Setting:
    """What memory depends on besides sizes and work."""

    stage: int
    """ZeRO stage."""
    ranks: int
    element: int
    """Bytes of a weight: 2 or 4."""
    offloaded: bool
    """Whether master weights and optimizer state are kept in the CPU's memory."""
    sent: int
    """Bytes of a gradient's number on its way between ranks."""
    on_owners: bool
    """Whether gradients are summed on the ranks that own them, where these own enough of a bucket."""
    bucket: int
    """Numbers in DeepSpeed's reduce bucket."""
    overlap: bool
    """Whether DeepSpeed keeps two of them."""
    max_gathered: int
    """Numbers that ZeRO-3 keeps gathered at once."""
    dropout: bool
    recompute: bool
    device: str
    """"cuda" or "cpu"."""

    def sums_on_owners(self, trained: int) -> bool:
        """Say whether the gradients of so many numbers are summed on their owners (training/deepspeed/owner_sums.py)."""
        used = min(self.bucket, trained)
        parts = min(self.ranks, used * self.ranks / trained + 1)  # a bucket begins and ends inside parts
        return self.on_owners and self.ranks > 1 and used >= MIN_PART * parts


def setting_of(
    config: dict[str, Any], ranks: int, element: int, dropout: bool, recompute: bool, device: str
) -> Setting:
    """Read what counts from the settings of a file of ds_configs/."""
    zero = config.get("zero_optimization", {})
    return Setting(
        stage=zero.get("stage", 0),
        ranks=ranks,
        element=element,
        offloaded=zero.get("offload_optimizer", {}).get("device", "none") != "none",
        sent={"bf16": 2, "fp16": 2}.get(config.get("communication_data_type", "fp32"), FULL),
        on_owners=sums_on_owners(config),
        bucket=int(zero.get("reduce_bucket_size", 500_000_000)),
        overlap=bool(zero.get("overlap_comm", zero.get("stage", 0) == 3)),
        max_gathered=int(zero.get("stage3_max_live_parameters", 1_000_000_000)),
        dropout=dropout,
        recompute=recompute,
        device=device,
    )


def model_memory(trained: int, setting: Setting, still: int = 0, apart: int = 0) -> dict[str, float]:
    """Return bytes of weights, gradients, optimizer and communication buffers.

    Args:
        trained: parameters that are trained.
        setting: ZeRO stage, ranks and formats.
        still: parameters of the network that are not trained (`model.freeze`): they have no gradient and no optimizer state.
        apart: parameters of a frozen tower, which stand apart from the network: every rank holds them whole, in float32, for
            DeepSpeed casts those of the network alone.
    """
    stage, share = setting.stage, 1 / setting.ranks
    element = setting.element
    mine = trained * share if stage else trained
    weights = trained * element * (share if stage == 3 else 1.0)
    optimizer = 2.0 * FULL * mine
    # Stage 0 in float32 trains the weights themselves.
    optimizer += FULL * mine if stage or element < FULL else 0
    if setting.offloaded:
        optimizer = 0.0
    frozen = still * element * (share if stage == 3 else 1.0) + apart * FULL
    return {
        "weights": weights,
        "gradients": _gradients(trained, setting),
        "optimizer": optimizer,
        "buffers": _buffers(trained, still, setting),
        **({"frozen weights": float(frozen)} if frozen else {}),
    }


def _gradients(parameters: int, setting: Setting) -> float:
    """Bytes of gradients at the end of a backward, where they are the most. Sums are float32 in every stage."""
    share, sixteen = parameters / setting.ranks, setting.element < FULL
    if setting.stage == 0:
        return parameters * (setting.element + (FULL if sixteen else 0))  # 16-bit gradients have their sums beside them
    if setting.stage == 1:
        # Whole sums on every rank in 16 bits; and the part that the optimizer's step reads.
        return (parameters * FULL if sixteen else share * FULL) + share * FULL
    if setting.stage == 2 and not sixteen:
        return 2 * share * FULL  # the optimizer's step reads a copy; in 16 bits the sums themselves lie in its order
    return share * FULL


def _buffers(trained: int, still: int, setting: Setting) -> float:
    """Bytes of the reduce buckets, and of what ZeRO-3 gathers: weights that are trained and weights that are not."""
    if setting.stage == 0:
        return 0.0
    # Stage 1 fills its buckets with the float32 sums, the others with gradients as they are.
    element = FULL if setting.stage == 1 else setting.element
    used = min(setting.bucket, trained)
    # A CPU gives memory that is written to; a GPU gives all that is asked for.
    bucket = (used if setting.device == "cpu" else setting.bucket) * element
    copy = used * setting.sent if element != setting.sent else 0  # to be sent in another format
    if setting.stage == 3:
        # A bucket is laid out anew to be scattered; and gathered weights stay for the backward.
        return bucket + used * element + copy + min(setting.max_gathered, trained + still) * setting.element
    return bucket * (2 if setting.overlap and setting.device != "cpu" else 1) + copy


def contrast_memory(pairs: int, size: int, ranks: int) -> float:
    """Return bytes of the contrastive loss of a turn: features of `size` numbers of all pairs, their gradient, and logits."""
    shared = ranks > 1 and pairs > MAX_UNSHARED_PAIRS
    cells = min(pairs**2 / (ranks if shared else 1), MAX_CELLS)
    return 2 * 2 * pairs * size * FULL + CELL * cells


def activation_memory(sizes: NetworkSizes, work: Work, setting: Setting) -> dict[str, float]:
    """Return bytes that forward and backward over one micro-batch keep: of the encoder, and of the heads.

    A frozen text encoder keeps nothing for the backward: attention or feed-forward of one layer is in use at a time. It, and any
    encoder of two towers, sees words alone.
    """
    shape, width = sizes.shape, sizes.shape.width
    # qkv 3, attended 1, both sums before and both outputs of the layer norms 4; up and its GELU; on a CPU the
    # attended sequences are joined by one more copy.
    numbers = (8 + (setting.device == "cpu")) * width + 2 * shape.feed_forward
    masks = 2 * width * (1 if setting.device == "cuda" else setting.element) if setting.dropout else 0
    layer = numbers * setting.element + masks
    if not sizes.trains_text:
        layers = max(6 * width, 2 * width + 2 * shape.feed_forward) * setting.element
    else:
        layers = shape.layers * width * setting.element + layer if setting.recompute else shape.layers * layer
    encoded = work.slots if sizes.encodes_pictures else work.words
    embedding = 3 * width * setting.element + 8 * sizes.feature_size * work.visual_rows / max(work.slots, 1)
    head = sum(TASKS[name].memory(terms, sizes, setting.element, setting.device) for name, terms in work.terms.items())
    pixels = sizes.pixel_memory * work.pixel_rows * setting.element
    kept = encoded * layers + work.slots * embedding + pixels
    # A frozen tower has looked, in float32, and keeps nothing, before the rest begins.
    return {"activations": max(kept, sizes.pixel_working_memory * work.pixel_rows * FULL), "head": head}
