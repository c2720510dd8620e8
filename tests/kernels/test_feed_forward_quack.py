import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m3p.kernels.feed_forward_quack import feed_forward_quack
from m3p.kernels.obstacles import Situation, quack_feed_forward
from m3p.kernels.residual_norm import Twice, apart
from m3p.model.attention import Layout
from m3p.model.encoder import Encoder, EncoderShape, Layer

ROWS, WIDTH, INNER = 7, 16, 24
CALLS: list[tuple[str, dict[str, Any]]] = []


def gemm_act(a: Tensor, b: Tensor, **more: Any) -> tuple[Tensor | None, Tensor]:
    """What QuACK documents: `a` [M, K] times `b` [K, N] plus bias, and its activation."""
    CALLS.append(("gemm_act", more))
    before = a @ b + more["bias"]
    return before if more["store_preact"] else None, F.gelu(before)


def gemm_dact(a: Tensor, b: Tensor, before: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
    """What QuACK documents: the gradient of the activation's input by that of its output, `a` times `b`; and that output."""
    CALLS.append(("gemm_dact", more))
    with torch.enable_grad():
        before = before.detach().requires_grad_()
        after = F.gelu(before)
    (gradient,) = torch.autograd.grad(after, before, a @ b)
    return gradient, after.detach()


@pytest.fixture
def quack(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    put(monkeypatch, gemm_act, gemm_dact)
    CALLS.clear()
    yield
    assert all(more["activation"] == "gelu_erf" and more["tuned"] is False for _, more in CALLS)


def put(monkeypatch: pytest.MonkeyPatch, act: Callable[..., object], dact: Callable[..., object]) -> None:
    """Let `quack.gemm_interface` be a module with these two functions."""
    for name in ("quack", "quack.gemm_interface"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    interface = sys.modules["quack.gemm_interface"]
    monkeypatch.setattr(interface, "gemm_act", act, raising=False)
    monkeypatch.setattr(interface, "gemm_dact", dact, raising=False)


def put_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's norm, which adds the bias of the linear layer before it, be one that a CPU computes."""

    def norm(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float, last: Tensor) -> Twice:
        assert dropout == 0
        return apart(F.layer_norm(x + added + last, weight.shape, weight, bias, eps))

    module = types.ModuleType("m3p.kernels.residual_norm_triton")
    monkeypatch.setattr(module, "residual_norm_triton", norm, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def tensors(kind: torch.dtype = torch.float64) -> list[Tensor]:
    """Return input, weights and biases of both halves."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, WIDTH), (INNER, WIDTH), (INNER,), (WIDTH, INNER), (WIDTH,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(kind).requires_grad_() for shape in shapes]


def plain(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor | None) -> Tensor:
    return F.linear(F.gelu(F.linear(x, up, up_bias)), down, down_bias)


@pytest.mark.usefixtures("quack")
@pytest.mark.parametrize("biased", [True, False])
def test_results_and_gradients_are_those_of_the_plain_form(biased: bool) -> None:
    x, up, up_bias, down, bias = tensors()
    down_bias = bias if biased else None
    mine, theirs = (form(x, up, up_bias, down, down_bias) for form in (feed_forward_quack, plain))
    torch.testing.assert_close(mine, theirs)
    wanted = [one for one in (x, up, up_bias, down, down_bias) if one is not None]
    upstream = torch.randn(mine.shape, generator=torch.Generator().manual_seed(1), dtype=mine.dtype)
    found, exact = (torch.autograd.grad(out, wanted, upstream) for out in (mine, theirs))
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other)
    assert [name for name, _ in CALLS] == ["gemm_act", "gemm_dact"]


@pytest.mark.usefixtures("quack")
def test_frozen_weights_get_no_gradient_and_what_lies_below_gets_its_own() -> None:
    x, *weights = tensors()
    frozen = [weight.detach() for weight in weights]
    # An upstream gradient whose numbers are one, repeated, and an input whose rows do not lie end to end.
    apart = x.detach().T.contiguous().T.requires_grad_()
    found, wanted = (torch.autograd.grad(form(apart, *frozen).sum(), apart)[0] for form in (feed_forward_quack, plain))
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(feed_forward_quack(x, *weights), plain(x, *weights))
    assert [more["store_preact"] for name, more in CALLS if name == "gemm_act"] == [True, False]


@pytest.mark.usefixtures("quack")
def test_second_derivatives_are_refused() -> None:
    x, *weights = tensors()
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(feed_forward_quack(x, *weights).sum(), x, create_graph=True)


@pytest.mark.usefixtures("quack")
@pytest.mark.parametrize(("recompute", "norm"), [(False, "torch"), (True, "torch"), (False, "triton")])
def test_a_layer_does_both_halves_of_feed_forward_by_quack(
    recompute: bool, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_norm(monkeypatch)
    encoder = Encoder(EncoderShape(layers=2, width=WIDTH, heads=2, feed_forward=INNER), 0.0, 0.0, recompute)
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    outcomes = []
    for kernel in ("torch", "quack"):
        for layer in encoder.layers:
            assert isinstance(layer, Layer)
            layer.gelu, layer.feed_forward_norm.kernel = kernel, norm if kernel == "quack" else "torch"
        encoder.zero_grad()
        out = encoder(x, Layout(torch.tensor([3, 4]), 4))
        (out * torch.arange(WIDTH)).sum().backward()
        outcomes.append([out, *(parameter.grad for parameter in encoder.parameters())])
    for mine, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert [name for name, _ in CALLS].count("gemm_dact") == 2


@pytest.mark.long
def test_the_calls_are_ones_that_the_package_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    interface, activation = pytest.importorskip("quack.gemm_interface"), pytest.importorskip("quack.activation")
    assert {"gelu_erf"} <= activation.act_fn_map.keys() & activation.dact_fn_map.keys()
    # Their references know no exact GELU, and their multiplication is one that a CPU does not have. All else of them, such as
    # which way round a weight lies, is what the kernels do.
    monkeypatch.setitem(interface.act_to_pytorch_fn_map, "gelu_erf", F.gelu)
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype, out: (a @ b).to(out_dtype))
    bound: list[dict[str, object]] = []

    def of(function: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
        taken = inspect.signature(reference).parameters

        def call(*others: Any, **more: Any) -> Any:
            arguments = inspect.signature(function).bind(*others, **more).arguments
            bound.append(arguments)
            with torch.enable_grad():
                return reference(**{name: value for name, value in arguments.items() if name in taken})

        return call

    act = of(interface.gemm_act, interface.gemm_act_ref)
    put(monkeypatch, act, of(interface.gemm_dact, interface.gemm_dact_ref))
    given = tensors(torch.float32)
    found, wanted = (torch.autograd.grad(form(*given).square().sum(), given) for form in (feed_forward_quack, plain))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
    assert [arguments["activation"] for arguments in bound] == ["gelu_erf", "gelu_erf"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_it_comes_as_near_the_exact_outcome_as_the_plain_form() -> None:
    if reason := quack_feed_forward(Situation("cuda", torch.bfloat16)):
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(0)
    shapes = [(7001, 768), (3072, 768), (3072,), (768, 3072), (768,), (7001, 768)]
    *given, up = (torch.randn(shape, generator=generator).to("cuda", torch.bfloat16) * 0.05 for shape in shapes)
    outcomes = []
    for form, kind in ((feed_forward_quack, torch.bfloat16), (plain, torch.bfloat16), (plain, torch.float64)):
        made = [one.to(kind).requires_grad_() for one in given]
        out = form(*made)
        outcomes.append([out.detach(), *torch.autograd.grad(out, made, up.to(kind))])
    for mine, theirs, exact in zip(*outcomes, strict=True):
        assert float((mine - exact).norm()) < 1.5 * float((theirs - exact).norm()) + 1e-4 * float(exact.norm())
