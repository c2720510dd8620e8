"""Whether a tower uses its parts in the order in which it holds them: training from a layer on trusts that order."""

from typing import Any

import torch
from torch import Tensor, nn


def names_from(model: nn.Module, layer: nn.Module) -> set[str]:
    """Return the names of the parameters of `layer`, and of all that the model holds behind them."""
    own = {id(parameter) for parameter in layer.parameters()}
    names = [name for name, _ in model.named_parameters()]
    first = next((place for place, parameter in enumerate(model.parameters()) if id(parameter) in own), len(names))
    return set(names[first:])


def uses_in_order(model: nn.Module, layers: nn.ModuleList, unused: frozenset[str], **inputs: Tensor) -> bool:
    """Tell whether from each layer on just those parameters are used that the model holds from there on, by one forward.

    PVT, for one, holds the patch embeddings of all its stages before their blocks. Parameters in `unused` are left out.
    """
    times = _first_calls(model, **inputs)
    if any(layer not in times for layer in layers):
        return False
    used = {name: _time(model, name, times) for name, _ in model.named_parameters() if name not in unused}
    return all(
        {name for name, time in used.items() if time >= times[layer]} == names_from(model, layer) - unused
        for layer in layers
    )


def _first_calls(model: nn.Module, **inputs: Tensor) -> dict[nn.Module, int]:
    """Return when each module is first called in a forward, counted from 0."""
    times: dict[nn.Module, int] = {}

    def note(module: nn.Module, arguments: Any) -> None:
        times.setdefault(module, len(times))

    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return times


def _time(model: nn.Module, name: str, times: dict[nn.Module, int]) -> int:
    """Return when a parameter is used: when its module is called, or, where that only holds it, the one around it."""
    owner = name
    while owner:
        owner = owner.rpartition(".")[0]
        if (module := model.get_submodule(owner)) in times:
            return times[module]
    return 0
