import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.model.attention import Layout, attend, backend

HEADS, SIZE = 2, 4


def layout_of(lengths: list[int]) -> Layout:
    return Layout(torch.tensor(lengths), max(lengths))


def attend_packed(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
    """`attend` on the packed order: qkv [T, 3, heads, size] -> [T, heads, size]."""
    arranged = layout.arrange(qkv.flatten(1), dropout).view(qkv.shape)
    return layout.restore(attend(arranged, layout, dropout).flatten(1)).view(-1, *qkv.shape[2:])


def reference(qkv: Tensor, lengths: list[int]) -> Tensor:
    """Plain softmax attention over all slots at once, with everything outside the own sequence masked."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    q, k, v = qkv.unbind(1)
    scores = torch.einsum("ihd,jhd->hij", q, k) / SIZE**0.5
    scores = scores.masked_fill(owner[:, None] != owner, float("-inf"))
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 2**31))
def test_grouped_attention_is_attention_inside_each_sequence(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(lengths), 3, HEADS, SIZE)
    qkv = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(shape[0], HEADS, SIZE, generator=generator, dtype=torch.float64)
    found, wanted = attend_packed(qkv, layout_of(lengths), 0.0), reference(qkv, lengths)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    (mine,) = torch.autograd.grad((found * weight).sum(), qkv)
    (theirs,) = torch.autograd.grad((wanted * weight).sum(), qkv)
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_sequences_of_one_length_lie_together_without_mask_and_padding() -> None:
    layout = layout_of([5, 5, 20, 5])
    x = torch.arange(35.0)[:, None]
    arranged = layout.arrange(x, 0.0)
    assert layout.groups == [(3, 5), (1, 20)]
    assert arranged[:, 0].tolist() == [*range(10), *range(30, 35), *range(10, 30)]
    assert torch.equal(layout.restore(arranged), x)


def test_a_layout_knows_where_sequences_begin() -> None:
    layout = layout_of([3, 1, 4])
    assert layout.starts.tolist() == [0, 3, 4]
    assert layout.cumulative.tolist() == [0, 3, 4, 8]


def test_dropout_of_weights_changes_the_outcome_and_repeats_with_the_seed() -> None:
    qkv = torch.randn(6, 3, HEADS, SIZE, generator=torch.Generator().manual_seed(0))
    outcomes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outcomes.append(attend_packed(qkv, layout_of([2, 4]), 0.5))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


@pytest.mark.parametrize(
    ("device", "precision", "dropout", "name"),
    [
        ("cpu", torch.float32, 0.0, r"grouped: .*\(no GPU\)"),
        ("cuda", torch.float32, 0.0, r"grouped: .*\(32-bit precision\)"),
        ("cuda", torch.bfloat16, 0.1, r"grouped: .*\(attention dropout\)"),
        ("cuda", torch.bfloat16, 0.0, r"varlen: "),
    ],
)
def test_the_backend_is_named_with_its_reason(device: str, precision: torch.dtype, dropout: float, name: str) -> None:
    assert re.match(name, backend(torch.device(device), precision, dropout))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_variable_length_kernel_agrees_with_the_grouped_one() -> None:
    lengths = [1, 7, 64, 130]
    qkv = torch.randn(sum(lengths), 3, 4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    device = torch.device("cuda")
    fast = attend_packed(qkv.to(device), Layout(torch.tensor(lengths, device=device), max(lengths)), 0.0)
    torch.testing.assert_close(fast.cpu(), attend_packed(qkv, layout_of(lengths), 0.0), atol=2e-2, rtol=2e-2)
