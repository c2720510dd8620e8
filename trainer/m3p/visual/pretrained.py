"""Modules with weights that were trained elsewhere, as parts of a visual embedder."""

from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def keep_weights(module: Module) -> Module:
    """Mark `module`: the network draws no weights for it, nor for what is inside it. Returns it."""
    module.keeps_weights = True  # type: ignore[assignment]
    return module


def keeps_weights(module: nn.Module) -> bool:
    """Say whether a module is marked by `keep_weights`."""
    return bool(getattr(module, "keeps_weights", False))


class Frozen(nn.Module):
    """A module that is not trained: it keeps its weights, drops no units, and computes without a gradient."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = keep_weights(module).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode, whatever the network around is in."""
        return super().train(False)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Call the module without a gradient."""
        with torch.no_grad():
            return self.module(*arguments, **named)
