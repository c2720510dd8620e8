import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m3p.kernels.cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    loss_and_gradient_reference,
    weighted_cross_entropy,
)

Three = tuple[Tensor, Tensor, Tensor]


def make(rows: int, width: int, words: int, seed: int, kind: torch.dtype, scale: float = 3.0) -> tuple[Three, Tensor]:
    """Rows, weight and bias with large logits among them, and labels."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, width), (words, width), (words,)]
    rows_, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).mul(scale).to(kind).requires_grad_()
        for shape in shapes
    )
    return (rows_, weight, bias), torch.randint(words, (rows,), generator=generator)


def gradients(loss: Tensor, tensors: Three) -> list[Tensor]:
    return list(torch.autograd.grad(loss * 0.37, tensors))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 8), st.integers(1, 50), st.integers(1, 10), st.integers(0, 2**31))
def test_loss_and_gradients_are_those_of_the_plain_form(
    rows: int, width: int, words: int, chunk: int, seed: int
) -> None:
    tensors, labels = make(rows, width, words, seed, torch.float64)
    found = linear_cross_entropy(*tensors, labels, chunk_rows=chunk)
    wanted = torch.nn.functional.cross_entropy(tensors[0] @ tensors[1].T + tensors[2], labels, reduction="sum")
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    for mine, theirs in zip(gradients(found, tensors), gradients(wanted, tensors), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=0)


@pytest.mark.parametrize("chunk", [2, 9])
def test_rows_count_by_their_factors(chunk: int) -> None:
    tensors, labels = make(5, 4, 20, 1, torch.float64)
    factors = torch.tensor([0.5, 0.5, 3.0, 0.0, 1e-3], dtype=torch.float64)
    found, losses = weighted_cross_entropy(*tensors, labels, factors, chunk_rows=chunk)
    wanted = torch.nn.functional.cross_entropy(tensors[0] @ tensors[1].T + tensors[2], labels, reduction="none")
    torch.testing.assert_close(losses, wanted, atol=1e-12, rtol=1e-12)
    assert not losses.requires_grad
    total = (wanted * factors).sum()
    torch.testing.assert_close(found, total, atol=1e-12, rtol=1e-12)
    for mine, theirs in zip(gradients(found, tensors), gradients(total, tensors), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_other_precisions_come_near_the_exact_outcome(kind: torch.dtype, tolerance: float) -> None:
    tensors, labels = make(12, 16, 40_000, 1, kind, 0.3)
    rows, weight, bias = tensors
    exact = (rows.detach().double(), weight.detach().double(), bias.detach().double())
    for tensor in exact:
        tensor.requires_grad_()
    found = linear_cross_entropy(*tensors, labels, chunk_rows=5)
    wanted = torch.nn.functional.cross_entropy(exact[0] @ exact[1].T + exact[2], labels, reduction="sum")
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=tolerance)
    for mine, theirs in zip(gradients(found, tensors), gradients(wanted, exact), strict=True):
        assert mine.dtype == kind
        assert float((mine.double() - theirs).norm()) < tolerance * float(theirs.norm())


def test_the_reference_is_the_plain_form() -> None:
    tensors, labels = make(3, 4, 20, 2, torch.float32)
    found = linear_cross_entropy_reference(*tensors, labels)
    torch.testing.assert_close(found, linear_cross_entropy(*tensors, labels))


def test_what_is_frozen_gets_no_gradient_and_without_gradients_the_loss_is_the_same() -> None:
    (rows, weight, bias), labels = make(4, 8, 30, 3, torch.float32)
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    loss = linear_cross_entropy(rows, weight, bias, labels)
    torch.autograd.backward(loss)
    assert rows.grad is not None
    assert weight.grad is None
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(rows, weight, bias, labels), loss)


def test_a_second_backward_is_refused_since_the_first_scales_in_place() -> None:
    (rows, weight, bias), labels = make(4, 8, 30, 3, torch.float32)
    loss = linear_cross_entropy(rows, weight, bias, labels)
    torch.autograd.backward(loss, retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.backward(loss)


def test_very_large_and_very_small_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]])
    losses, gradient = loss_and_gradient_reference(logits.clone(), torch.tensor([2, 0]))
    torch.testing.assert_close(losses, torch.tensor([2e4, 1.0986123]))
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0.0, -1.0], [-2 / 3, 1 / 3, 1 / 3]]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("kernel", ["triton", "torch"])
def test_on_a_gpu_both_kernels_come_near_the_exact_outcome(kind: torch.dtype, tolerance: float, kernel: str) -> None:
    (rows, weight, bias), labels = make(70, 64, 40_003, 1, kind, 0.3)
    exact = (rows.detach().double(), weight.detach().double(), bias.detach().double())
    for tensor in exact:
        tensor.requires_grad_()
    wanted = torch.nn.functional.cross_entropy(exact[0] @ exact[1].T + exact[2], labels, reduction="sum")
    there = (rows.detach().cuda(), weight.detach().cuda(), bias.detach().cuda())
    for tensor in there:
        tensor.requires_grad_()
    found = linear_cross_entropy(there[0], there[1], there[2], labels.cuda(), chunk_rows=32, kernel=kernel)
    assert found.item() == pytest.approx(wanted.item(), rel=tolerance)
    for mine, theirs in zip(gradients(found, there), gradients(wanted, exact), strict=True):
        assert float((mine.double().cpu() - theirs).norm()) < tolerance * float(theirs.norm())
