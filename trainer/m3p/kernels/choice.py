"""Which implementation of each fused operation a run uses, and why: the recipe's `kernels` section.

`auto` takes, in the order below, the one that can run here. Nothing is swapped without a word: the run prints the
outcome with its reasons, and asking for one that cannot run is an error with the ways out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from m3p.errors import UserError
from m3p.kernels import obstacles
from m3p.kernels.obstacles import Situation


class KernelsConfig(BaseModel):
    """The recipe's `kernels` section. `auto` picks what can run here; the outcome is printed at the start."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attention: Literal["auto", "varlen", "flash_attn", "grouped", "triton", "fa4"] = Field(
        "auto",
        description="Of the encoder: torch's variable-length kernel, flash-attn 2, one call for each length, a Triton kernel "
        "for short sequences, which writes the same gradient each time (heads of 32, 64 or 128 numbers, no attention dropout), "
        "or FlashAttention 4 (Hopper or newer, no attention dropout, the package flash-attn-4). `auto` never takes the last two "
        "until a GPU shows a gain.",
    )
    word_head: Literal["auto", "triton", "torch"] = Field(
        "auto", description="Loss and gradient of a chunk of logits: one Triton kernel, or plain torch."
    )
    layer_norm: Literal["auto", "torch", "triton", "apex"] = Field(
        "auto",
        description="Dropout, residual and layer norm behind attention and feed-forward: three operations, the last by "
        "torch or apex, or one Triton kernel, which adds the bias too and sums gradients (ZeRO 0 to 2). `auto` is torch: "
        "the first version of Triton's took 2 % longer on an H200, and this one was not measured yet.",
    )
    gelu: Literal["auto", "torch", "triton", "quack"] = Field(
        "auto",
        description="Between the halves of feed-forward: torch's; a Triton kernel, which adds the bias too and sums its "
        "gradient in the backward (ZeRO 0 to 2); or inside the multiplications before and, in the backward, behind it, by the "
        "package quack-kernels (Hopper or newer, ZeRO 0 to 2). `auto` is torch until a GPU shows a gain.",
    )
    layers: Literal["auto", "eager", "compiled"] = Field(
        "auto",
        description="What follows attention in a layer: operation by operation, or compiled by torch.compile (ZeRO 0 to 2; "
        "takes its time at the first step). `auto` is eager until a GPU shows a gain.",
    )
    optimizer: Literal["auto", "torch", "deepspeed", "apex"] = Field(
        "auto",
        description="Whose fused AdamW. `auto` is torch's, which needs no compiler and serves every ZeRO stage.",
    )


@dataclass(frozen=True)
class Chosen:
    """One implementation, and why it was taken."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


Obstacle = Callable[[Situation], str | None]
"""Returns why an implementation cannot run, or None (kernels/obstacles.py)."""


def choose(config: KernelsConfig, situation: Situation) -> dict[str, Chosen]:
    """Return the implementation of each operation. Raises UserError: one that the recipe names cannot run here."""
    chosen = {field: choose_one(field, getattr(config, field), situation) for field in CANDIDATES}
    problems = [found for found in chosen.values() if isinstance(found, str)]
    if config.layers == "compiled":
        problems += [
            f"kernels.layers = compiled makes its own {what}, and kernels.{field} = {getattr(config, field)} asks for "
            "others; set one of the two to auto"
            for field, what in (("layer_norm", "layer norms"), ("gelu", "GELU"))
            if getattr(config, field) not in ("auto", "torch")
        ]
    if problems:
        raise UserError("\n".join(problems))
    return {field: found for field, found in chosen.items() if isinstance(found, Chosen)}


def choose_one(field: str, wanted: str, situation: Situation) -> Chosen | str:
    """Return the implementation of `field`, or why the one that is wanted cannot run, with the ways out."""
    candidates = CANDIDATES[field]
    reasons = {name: obstacle(situation) for name, (_, obstacle) in candidates.items()}
    possible = [name for name, reason in reasons.items() if reason is None]
    if wanted == "auto":
        name = possible[0]
        passed = [f"{other}: {reasons[other]}" for other in list(candidates)[: list(candidates).index(name)]]
        return Chosen(name, candidates[name][0] + (f" (not {'; not '.join(passed)})" if passed else ""))
    if reasons[wanted] is None:
        return Chosen(wanted, f"{candidates[wanted][0]} (the recipe says so)")
    return f"kernels.{field} = {wanted}: {reasons[wanted]}; set it to {' or '.join(['auto', *possible])}"


def automatic_attention(device: torch.device, precision: torch.dtype, head_size: int) -> str:
    """Return the attention that `auto` takes for tensors of this kind, with heads of `head_size` numbers."""
    found = choose_one("attention", "auto", Situation(device.type, precision, head_size=head_size))
    assert isinstance(found, Chosen)
    return found.name


CANDIDATES: Mapping[str, Mapping[str, tuple[str, Obstacle]]] = {
    "attention": {
        "varlen": ("torch's variable-length flash attention", obstacles.varlen),
        "flash_attn": ("flash-attn 2, queries, keys and values packed", obstacles.flash_attn),
        "grouped": ("torch's scaled-dot-product attention over the sequences of each length", obstacles.nothing),
        "triton": (
            "one Triton program for each sequence and head, gradients written packed",
            obstacles.triton_attention,
        ),
        "fa4": (f"FlashAttention 4, of {' '.join(obstacles.FA4)}", obstacles.fa4),
    },
    "word_head": {
        "triton": ("one Triton kernel for loss and gradient of a chunk of logits", obstacles.triton),
        "torch": ("loss and gradient of a chunk of logits in torch", obstacles.nothing),
    },
    "layer_norm": {
        "torch": ("torch's dropout, addition and layer norm", obstacles.nothing),
        "triton": ("bias, dropout, residual and layer norm in one Triton kernel", obstacles.triton_with_bias),
        "apex": ("torch's dropout and addition, apex's FusedLayerNorm", obstacles.apex_norm),
    },
    "gelu": {
        "torch": ("torch's GELU", obstacles.nothing),
        "triton": ("bias and GELU in one Triton kernel", obstacles.triton_with_bias),
        "quack": (f"bias and GELU inside multiplications of {' '.join(obstacles.QUACK)}", obstacles.quack_feed_forward),
    },
    "layers": {
        "eager": ("layers operation by operation", obstacles.nothing),
        "compiled": ("what follows attention in a layer compiled by torch.compile", obstacles.compiled),
    },
    "optimizer": {
        "torch": ("torch's fused AdamW; needs no compiler", obstacles.nothing),
        "deepspeed": ("DeepSpeed's FusedAdam, compiled at the start", obstacles.deepspeed_adam),
        "apex": ("apex's FusedAdam", obstacles.apex_adam),
    },
}
"""Operation -> implementation -> (what it is, what may stand in its way), in the order in which `auto` looks."""
