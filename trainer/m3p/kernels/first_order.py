"""Backward passes that autograd cannot differentiate again: kernels, and gradients that a forward has made."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Gradients = TypeVar("Gradients")


def first_order(backward: Callable[Arguments, Gradients]) -> Callable[Arguments, Gradients]:
    """Return the `backward` of a torch.autograd.Function; it raises RuntimeError where its own gradient may be asked for.

    Autograd sees no operation inside, so second derivatives would lack this part without a word. torch's own
    `once_differentiable` raises for `backward()` alone: `autograd.grad` never comes to the node that raises.
    """

    @wraps(backward)
    def checked(*arguments: Arguments.args, **named: Arguments.kwargs) -> Gradients:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True asks for second derivatives, and this operation has first ones alone: compute its plain form"
            )
        return backward(*arguments, **named)

    return checked
