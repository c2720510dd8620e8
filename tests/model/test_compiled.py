"""Compiled layers give what layers give operation by operation."""

import pytest
import torch
from torch import Tensor

from m3p.model.attention import Layout
from m3p.model.encoder import EncoderShape, Layer

SHAPE = EncoderShape(layers=1, width=16, heads=2, feed_forward=24, positions=20)


def outcome(layers: list[Layer], lengths: list[int]) -> list[Tensor]:
    """Return the output of a stack over sequences of `lengths`, and the gradients of all that it depends on."""
    x = torch.randn(sum(lengths), SHAPE.width, generator=torch.Generator().manual_seed(1), requires_grad=True)
    layout = Layout(torch.tensor(lengths), max(lengths))
    out = layout.arrange(x)
    for layer in layers:
        out = layer(out, layout)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *parameters])]


@pytest.mark.long
def test_outputs_and_gradients_are_equal_for_all_lengths_and_layers() -> None:
    torch.manual_seed(0)
    layers = [Layer(SHAPE, 0.0, 0.0) for _ in range(2)]
    cases = [[5, 4], [3, 3, 9]]
    wanted = [outcome(layers, lengths) for lengths in cases]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for layer in layers:
        layer.compile_rest("aot_eager")  # traced and differentiated as for inductor, without its compiler
    for lengths, plain in zip(cases, wanted, strict=True):
        for mine, theirs in zip(outcome(layers, lengths), plain, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "one for all lengths and layers"
