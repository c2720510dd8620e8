"""What stands in the way of each implementation that the recipe's `kernels` section names: in words, with the way out.

Each function returns why its implementation cannot run in a situation, or None where it can. Optional packages are looked up, and
not imported: one that cannot be loaded must not end a run that does not use it.
"""

import os
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import torch

NO_APEX = "NVIDIA's apex is not installed (build it from source; PyPI's `apex` is another program)"
HEAD_SIZES = (32, 64, 128)
"""Numbers of an attention head that Triton's attention takes."""
FA4 = ("flash-attn-4", "4.0.0b36")
"""Package of FlashAttention 4 on PyPI, and the version whose interface is called; the next preview's may differ."""
QUACK = ("quack-kernels", "0.6.5")
"""Package of QuACK's multiplications on PyPI, and the version whose interface is called."""


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
    widths: tuple[int, int] = (768, 3072)
    """Numbers of a slot in the encoder, and inside its feed-forward part."""


def nothing(situation: Situation) -> str | None:
    """Return None: plain torch runs everywhere."""
    return None


def varlen(situation: Situation) -> str | None:
    """Return why torch's flash attention cannot run: what `mha_varlen_fwd` of its flash_attn/flash_api.cpp checks."""
    if obstacle := _16_bits_on_a_gpu(situation):
        return obstacle
    if situation.head_size % 8 or situation.head_size > 256:
        return _heads("whose numbers are a multiple of 8, at most 256", situation)
    return None


def flash_attn(situation: Situation) -> str | None:
    """Return why flash-attn 2 cannot run, which pads heads to a multiple of 8 numbers itself."""
    if obstacle := _16_bits_on_a_gpu(situation):
        return obstacle
    if situation.head_size > 256:
        return _heads("of at most 256 numbers", situation)
    return None if installed("flash_attn") else "flash-attn is not installed"


def fa4(situation: Situation) -> str | None:
    """Return why FlashAttention 4 cannot run.

    Its flash_attn/cute/interface.py checks GPUs in `_flash_attn_bwd`, and heads in `_validate_head_dims`, but for those of
    compute capability 12, where more than 128 numbers are not known to fit its shared memory.
    """
    if obstacle := _16_bits_on_hopper(situation):
        return obstacle
    size, generation = situation.head_size, _capability()[0]
    beyond_128 = {9: range(136, 257, 8), 10: (256,), 11: (256,)}.get(generation, ())
    if size % 8 or (size > 128 and size not in beyond_128):
        more = {9: "256", 10: "128, or 256", 11: "128, or 256"}.get(generation, "128")
        return _heads(f"whose numbers are a multiple of 8, at most {more} on this GPU", situation)
    return _no_attention_dropout(situation) or _package(*FA4)


def quack_feed_forward(situation: Situation) -> str | None:
    """Return why QuACK's multiplications cannot run, whose rows begin at multiples of 16 bytes."""
    if situation.stage == 3:
        return "multiplies by weights of other modules, which ZeRO 3 gathers for those alone"
    if obstacle := _16_bits_on_hopper(situation):
        return obstacle
    if any(width % 8 for width in situation.widths):
        width, inner = situation.widths
        return f"takes widths that are multiples of 8, and model.shape has width = {width}, feed_forward = {inner}"
    return _package(*QUACK)


def triton(situation: Situation) -> str | None:
    """Return why a Triton kernel cannot run that asks for no more than a GPU."""
    return "needs a GPU" if situation.device != "cuda" else _triton_builds()


def triton_attention(situation: Situation) -> str | None:
    """Return why Triton's attention for short sequences cannot run."""
    if obstacle := triton(situation) or _old_gpu((8, 0)):
        return obstacle
    if situation.head_size not in HEAD_SIZES:
        return _heads(f"of {', '.join(map(str, HEAD_SIZES))} numbers", situation)
    return _no_attention_dropout(situation)


def triton_with_bias(situation: Situation) -> str | None:
    """Return why a Triton kernel cannot run that adds the bias of a linear layer in its place."""
    if situation.stage == 3:
        return "adds the bias of another module, which ZeRO 3 gathers for that one alone"
    return triton(situation)


def compiled(situation: Situation) -> str | None:
    """Return why what follows attention in a layer cannot be compiled by torch.compile."""
    if situation.stage == 3:
        return "ZeRO 3 gathers weights in the middle of a layer, which cannot be compiled"
    if situation.device == "cuda":
        return _triton_builds()
    return None if any(map(which, ("g++", "clang++"))) else "needs a C++ compiler (g++) on a CPU"


def _fused_adam(situation: Situation) -> str | None:
    """Return why neither DeepSpeed's optimizer nor apex's can run, whatever is installed."""
    if situation.offloaded:
        return "the optimizer's state is offloaded to the CPU"
    if situation.stage == 0 and situation.precision != torch.float32:
        # DeepSpeed then lays master weights end to end, where checkpoints do not look for them.
        return "ZeRO 0 in 16 bits is not supported with it (ZeRO 1 is)"
    return None


def deepspeed_adam(situation: Situation) -> str | None:
    """Return why DeepSpeed's FusedAdam cannot run."""
    if obstacle := _fused_adam(situation):
        return obstacle
    from torch.utils.cpp_extension import CUDA_HOME

    compiler = situation.device == "cpu" or CUDA_HOME is not None
    return None if compiler and installed("ninja") else "DeepSpeed compiles it at the start: needs ninja and nvcc"


def apex_adam(situation: Situation) -> str | None:
    """Return why apex's FusedAdam cannot run."""
    if obstacle := _fused_adam(situation):
        return obstacle
    if situation.device != "cuda":
        return "needs a GPU"
    if situation.stage == 3:
        return "counts updates by group, but ZeRO 3 updates a group in parts"
    return None if have_apex() else NO_APEX


def apex_norm(situation: Situation) -> str | None:
    """Return why apex's FusedLayerNorm cannot run."""
    if situation.device != "cuda":
        return "needs a GPU"
    built = installed("fused_layer_norm_cuda") and installed("apex.normalization")
    return None if built else NO_APEX


def have_apex() -> bool:
    """Return whether NVIDIA's apex is installed with its CUDA code; PyPI's `apex` is a web toolkit, which has no amp_C."""
    return installed("amp_C") and installed("apex.optimizers")


def installed(module: str) -> bool:
    """Return whether Python would find the code of `module`.

    A folder without code of its own does not count: flash-attn-4 alone leaves such a one, named `flash_attn` as the package of
    flash-attn 2.
    """
    try:
        spec = find_spec(module)
    except (ModuleNotFoundError, ValueError):  # its parent is not there; a module made by hand has no spec
        return False
    return spec is not None and spec.origin is not None


def _triton_builds() -> str | None:
    """Return why Triton cannot build the C code that starts its kernels (triton/runtime/build.py)."""
    if not installed("triton"):
        return "Triton is not installed"
    if "CC" not in os.environ and not any(map(which, ("gcc", "clang"))):
        return "Triton starts kernels by C code, and there is no compiler for it (gcc or clang)"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    headers = Path(sysconfig.get_paths(scheme)["include"])
    if not (headers / "Python.h").is_file():
        return f"Triton starts kernels by C code, and Python's headers are not in {headers} (Debian: python3-dev)"
    return None


def _package(name: str, wanted: str) -> str | None:
    """Say that a package of PyPI is missing or has another version than the one whose interface is called."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is not installed (pip install {name}=={wanted})"
    return (
        None if found == wanted else f"calls {name} {wanted}, and {found} is installed (pip install {name}=={wanted})"
    )


def _16_bits_on_a_gpu(situation: Situation, capability: tuple[int, int] = (8, 0)) -> str | None:
    if situation.device != "cuda":
        return "needs a GPU"
    if situation.precision not in (torch.bfloat16, torch.float16):
        return "needs 16-bit precision (bf16 in the DeepSpeed file)"
    return _old_gpu(capability)


def _16_bits_on_hopper(situation: Situation) -> str | None:
    obstacle = _16_bits_on_a_gpu(situation, (9, 0))
    # AMD's GPUs count their generations in the same way: an MI300 calls itself 9.4.
    return obstacle or ("needs a GPU of NVIDIA" if torch.version.hip else None)


def _old_gpu(capability: tuple[int, int]) -> str | None:
    if _capability() >= capability:
        return None
    name = {8: "Ampere", 9: "Hopper"}[capability[0]]
    return f"needs a GPU of compute capability {capability[0]}.{capability[1]} ({name}) or above"


def _capability() -> tuple[int, int]:
    """Return the compute capability of the current GPU; where there is none to ask, that of Hopper."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)


def _heads(taken: str, situation: Situation) -> str:
    return f"takes heads {taken}, and this encoder's have {situation.head_size} (width / heads)"


def _no_attention_dropout(situation: Situation) -> str | None:
    if not situation.attention_dropout:
        return None
    return f"drops no attention weights, and model.attention_dropout = {situation.attention_dropout:g} (0 is taken)"
