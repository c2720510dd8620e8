"""Modules with weights that were trained elsewhere, as parts of a visual embedder."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def keep_weights(module: Module, rate: float = 1.0) -> Module:
    """Mark `module` as loaded: the network draws no weights for it, nor for what is inside it. Returns it.

    Its weights are trained at `rate` times optimizer.learning_rate, like those of the encoder.
    """
    module.keeps_weights = True  # type: ignore[assignment]
    module.rate = rate  # type: ignore[assignment]
    return module


def keeps_weights(module: nn.Module) -> bool:
    """Say whether a module is marked by `keep_weights`."""
    return bool(getattr(module, "keeps_weights", False))


class Frozen(nn.Module):
    """A loaded module that is never trained: it drops no units, computes without a gradient, and stands apart.

    Its weights move with the network from device to device, but are none of the network's: DeepSpeed leaves them in float32 where
    it casts the network to 16 bits, and they are in no state dict, checkpoint, optimizer or ZeRO share. So every rank holds them
    whole, no rank waits for another to run the module, and a checkpoint is as large as what is trained.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # In a tuple, where torch does not look for modules.
        self._apart = (module.requires_grad_(False).eval(),)

    @property
    def module(self) -> nn.Module:
        """The module."""
        return self._apart[0]

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode, whatever the network around is in."""
        return super().train(False)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Call the module without a gradient."""
        with torch.no_grad():
            return self.module(*arguments, **named)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Frozen":
        """Move or convert the weights; torch calls it for all modules of the network."""
        self.module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class LookingFirst(nn.Module):
    """A visual embedder the first part of which is frozen, so that it need look at a picture only once.

    Its `forward` takes either pixels or what `look` made of them.
    """

    def look(self, features: Tensor) -> Tensor:
        """Return what the frozen part says of pictures [N, ...]; what it has said already stays as it is."""
        raise NotImplementedError


class Recomputing(nn.Module):
    """A trained module that can keep only the inputs of its layers, and compute the rest again in the backward."""

    recompute = False
    """Whether it does; the network sets it by `model.recompute`."""
