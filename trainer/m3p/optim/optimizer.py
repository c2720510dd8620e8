"""AdamW (arXiv 1711.05101) with parameter groups."""

from importlib import import_module
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from m3p.visual.pretrained import keeps_weights

PLACES = ("positions.weight", "types.weight", "places.weight")
"""Tables that do not decay; nor does any vector: biases, norms, the temperature."""


class OptimizerConfig(BaseModel):
    """The recipe's `optimizer` section. The rate follows `schedule`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    learning_rate: float = Field(gt=0, description="Peak rate of the encoder and text embedder.")
    new_learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak rate of the visual embedder and the heads, which start from nothing; the same if left out. A vision "
        "tower, which is loaded, follows learning_rate (visual.rate).",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Each encoder layer has this times the rate of the layer above it; the top one has it once, and the text and "
        "visual embedders once more than the lowest layer (BEiT). Heads and a vision tower keep theirs. 1: all alike.",
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the mean of gradients.")
    beta2: float = Field(0.98, ge=0, lt=1, description="Decay of the mean of squared gradients.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled; not of biases, norms, places and the temperature.")
    clip: float = Field(1.0, ge=0, description="Largest norm of the whole gradient; 0 does not clip.")


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the groups of trained parameters; `peak` in each is the rate that the schedule scales."""
    new_rate = config.new_learning_rate or config.learning_rate
    loaded, layers = _loaded_rates(model), _count_layers(model)
    groups: dict[tuple[int, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(PLACES)
            if name in loaded:
                place, peak = 2, loaded[name] * config.learning_rate
            else:
                place, peak = (1, new_rate) if name.startswith(("visual.", "heads.")) else (0, config.learning_rate)
                peak *= config.layer_decay ** _depth(name, layers)
            groups.setdefault((place, peak, decayed), []).append(parameter)
    return [
        {"params": parameters, "peak": peak, "weight_decay": config.weight_decay if decayed else 0.0}
        for (_, peak, decayed), parameters in sorted(groups.items(), key=_order)
    ]


def _order(item: tuple[tuple[int, float, bool], list[nn.Parameter]]) -> tuple[int, float, bool]:
    """Order groups: of those of one place, that of the largest rate comes first."""
    (place, peak, decayed), _ = item
    return place, -peak, decayed


def _count_layers(model: nn.Module) -> int:
    """Return the number of layers of the encoder."""
    return len({name.split(".")[2] for name, _ in model.named_parameters() if name.startswith("encoder.layers.")})


def _depth(name: str, layers: int) -> int:
    """Return how far a parameter lies under the heads: 0 for these, 1 for the top layer, `layers` + 1 for embedders."""
    if name.startswith("heads."):
        return 0
    return layers - int(name.split(".")[2]) if name.startswith("encoder.layers.") else layers + 1


def _loaded_rates(model: nn.Module) -> dict[str, float]:
    """Return the parameters inside modules that `keep_weights` marks, by name, and the multiple of the rate of each."""
    return {
        f"{place}.{name}": module.rate
        for place, module in model.named_modules()
        if keeps_weights(module)
        for name, _ in module.named_parameters()
    }


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, kernel: str = "torch", fused: Any = None
) -> torch.optim.Optimizer:
    """Return AdamW of the implementation `kernel` (`kernels/choice.py`); all make the same update.

    `fused` is the class of an implementation that an engine brings, which then stands for `kernel`.
    """
    groups, betas = parameter_groups(model, config), (config.beta1, config.beta2)
    if kernel == "torch":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)
    make: Any = fused or import_module("apex.optimizers").FusedAdam
    found: torch.optim.Optimizer = make(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon)
    return found


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Set every group's rate to `share` of its peak; return the encoder's (the first group's, the largest of its layers)."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    rate: float = optimizer.param_groups[0]["lr"]
    return rate
