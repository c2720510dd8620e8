"""Which implementation of each fused operation a run uses, and why: the recipe's `kernels` section.

`auto` takes, in the order below, the one that can run here. Nothing is swapped without a word: the run prints the
outcome with its reasons, and asking for one that cannot run is an error with the ways out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from shutil import which
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from m3p.errors import UserError

NO_APEX = "NVIDIA's apex is not installed (build it from source; PyPI's `apex` is another program)"
HEAD_SIZES = (32, 64, 128)
"""Numbers of an attention head that Triton's attention takes."""


class KernelsConfig(BaseModel):
    """The recipe's `kernels` section. `auto` picks what can run here; the outcome is printed at the start."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attention: Literal["auto", "varlen", "flash_attn", "grouped", "triton"] = Field(
        "auto",
        description="Of the encoder: torch's variable-length kernel, flash-attn 2, one call for each length, or a Triton kernel "
        "for short sequences, which writes the same gradient each time (heads of 32, 64 or 128 numbers, no attention dropout). "
        "`auto` never takes the last until a GPU shows a gain.",
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
    gelu: Literal["auto", "torch", "triton"] = Field(
        "auto",
        description="Between the halves of feed-forward: torch's, or a Triton kernel, which adds the bias too and sums its "
        "gradient in the backward (ZeRO 0 to 2). `auto` is torch until a GPU shows a gain.",
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
class Situation:
    """What the choice depends on."""

    device: str
    """"cuda" or "cpu"."""
    precision: torch.dtype
    stage: int = 0
    """ZeRO stage."""
    offloaded: bool = False
    """Whether the optimizer's state lies in the CPU's memory."""
    head_size: int = 64
    """Numbers of an attention head of the encoder."""
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class Chosen:
    """One implementation, and why it was taken."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


Obstacle = Callable[[Situation], str | None]
"""Returns why an implementation cannot run, or None."""


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
    obstacles = {name: obstacle(situation) for name, (_, obstacle) in candidates.items()}
    possible = [name for name, obstacle in obstacles.items() if obstacle is None]
    if wanted == "auto":
        name = possible[0]
        passed = [f"{other}: {obstacles[other]}" for other in list(candidates)[: list(candidates).index(name)]]
        return Chosen(name, candidates[name][0] + (f" (not {'; not '.join(passed)})" if passed else ""))
    if obstacles[wanted] is None:
        return Chosen(wanted, f"{candidates[wanted][0]} (the recipe says so)")
    return f"kernels.{field} = {wanted}: {obstacles[wanted]}; set it to {' or '.join(['auto', *possible])}"


def automatic_attention(device: torch.device, precision: torch.dtype) -> str:
    """Return the attention that `auto` takes for tensors of this kind."""
    found = choose_one("attention", "auto", Situation(device.type, precision))
    assert isinstance(found, Chosen)
    return found.name


def have_apex() -> bool:
    """Whether NVIDIA's apex is installed with its CUDA code; PyPI's `apex` is a web toolkit, which has no amp_C."""
    return _installed("amp_C") and _installed("apex.optimizers")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # its parent is not there; a module made by hand has no spec
        return False


def _nothing(situation: Situation) -> str | None:
    return None


def _flash(situation: Situation) -> str | None:
    if situation.device != "cuda":
        return "needs a GPU"
    if situation.precision not in (torch.bfloat16, torch.float16):
        return "needs 16-bit precision (bf16 in the DeepSpeed file)"
    return _old_gpu()


def _old_gpu() -> str | None:
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return "needs a GPU of compute capability 8.0 (Ampere) or above"
    return None


def _flash_attn(situation: Situation) -> str | None:
    return _flash(situation) or (None if _installed("flash_attn") else "flash-attn is not installed")


def _triton(situation: Situation) -> str | None:
    if situation.device != "cuda":
        return "needs a GPU"
    return None if _installed("triton") else "Triton is not installed"


def _triton_attention(situation: Situation) -> str | None:
    if obstacle := _triton(situation):
        return obstacle
    if obstacle := _old_gpu():
        return obstacle
    if situation.head_size not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        return f"takes heads of {sizes} numbers, and this encoder's have {situation.head_size} (width / heads)"
    if situation.attention_dropout:
        return f"drops no attention weights, and model.attention_dropout = {situation.attention_dropout:g} (0 is taken)"
    return None


def _triton_with_bias(situation: Situation) -> str | None:
    if situation.stage == 3:
        return "adds the bias of another module, which ZeRO 3 gathers for that one alone"
    return _triton(situation)


def _compiled(situation: Situation) -> str | None:
    if situation.stage == 3:
        return "ZeRO 3 gathers weights in the middle of a layer, which cannot be compiled"
    if situation.device == "cuda":
        return None if _installed("triton") else "Triton is not installed"
    return None if any(map(which, ("g++", "clang++"))) else "needs a C++ compiler (g++) on a CPU"


def _fused_adam(situation: Situation) -> str | None:
    if situation.offloaded:
        return "the optimizer's state is offloaded to the CPU"
    if situation.stage == 0 and situation.precision != torch.float32:
        # DeepSpeed then lays master weights end to end, where checkpoints do not look for them.
        return "ZeRO 0 in 16 bits is not supported with it (ZeRO 1 is)"
    return None


def _deepspeed_adam(situation: Situation) -> str | None:
    if obstacle := _fused_adam(situation):
        return obstacle
    from torch.utils.cpp_extension import CUDA_HOME

    compiler = situation.device == "cpu" or CUDA_HOME is not None
    return None if compiler and _installed("ninja") else "DeepSpeed compiles it at the start: needs ninja and nvcc"


def _apex_adam(situation: Situation) -> str | None:
    if obstacle := _fused_adam(situation):
        return obstacle
    if situation.device != "cuda":
        return "needs a GPU"
    if situation.stage == 3:
        return "counts updates by group, but ZeRO 3 updates a group in parts"
    return None if have_apex() else NO_APEX


def _apex_norm(situation: Situation) -> str | None:
    if situation.device != "cuda":
        return "needs a GPU"
    built = _installed("fused_layer_norm_cuda") and _installed("apex.normalization")
    return None if built else NO_APEX


CANDIDATES: Mapping[str, Mapping[str, tuple[str, Obstacle]]] = {
    "attention": {
        "varlen": ("torch's variable-length flash attention", _flash),
        "flash_attn": ("flash-attn 2, queries, keys and values packed", _flash_attn),
        "grouped": ("torch's scaled-dot-product attention over the sequences of each length", _nothing),
        "triton": ("one Triton program for each sequence and head, gradients written packed", _triton_attention),
    },
    "word_head": {
        "triton": ("one Triton kernel for loss and gradient of a chunk of logits", _triton),
        "torch": ("loss and gradient of a chunk of logits in torch", _nothing),
    },
    "layer_norm": {
        "torch": ("torch's dropout, addition and layer norm", _nothing),
        "triton": ("bias, dropout, residual and layer norm in one Triton kernel", _triton_with_bias),
        "apex": ("torch's dropout and addition, apex's FusedLayerNorm", _apex_norm),
    },
    "gelu": {
        "torch": ("torch's GELU", _nothing),
        "triton": ("bias and GELU in one Triton kernel", _triton_with_bias),
    },
    "layers": {
        "eager": ("layers operation by operation", _nothing),
        "compiled": ("what follows attention in a layer compiled by torch.compile", _compiled),
    },
    "optimizer": {
        "torch": ("torch's fused AdamW; needs no compiler", _nothing),
        "deepspeed": ("DeepSpeed's FusedAdam, compiled at the start", _deepspeed_adam),
        "apex": ("apex's FusedAdam", _apex_adam),
    },
}
"""Operation -> implementation -> (what it is, what may stand in its way), in the order in which `auto` looks."""
