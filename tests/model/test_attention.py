import inspect
import sys
import types
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m3p.kernels.choice import CANDIDATES
from m3p.kernels.obstacles import Situation
from m3p.model import attention
from m3p.model.attention import Layout, attend
from m3p.model.encoder import Encoder, EncoderShape

HEADS, SIZE = 2, 4


def layout_of(lengths: list[int]) -> Layout:
    return Layout(torch.tensor(lengths), max(lengths))


def attend_packed(qkv: Tensor, layout: Layout, dropout: float) -> Tensor:
    """`attend` on the packed order: qkv [T, 3, heads, size] -> [T, heads, size]."""
    arranged = layout.arrange(qkv.flatten(1)).view(qkv.shape)
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
    arranged = layout.arrange(x)
    assert layout.groups == [(3, 5), (1, 20)]
    assert arranged[:, 0].tolist() == [*range(10), *range(30, 35), *range(10, 30)]
    assert torch.equal(layout.restore(arranged), x)


def test_a_longest_length_that_is_too_small_is_found_on_a_cpu() -> None:
    with pytest.raises(AssertionError, match="20"):
        Layout(torch.tensor([5, 20]), 19).arrange(torch.zeros(25, 1))
    assert Layout(torch.tensor([5, 20]), 25).arrange(torch.zeros(25, 1)).shape == (25, 1)


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


def test_the_package_flash_attn_is_called_with_the_packed_tensor_and_its_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []

    def packed(qkv: Tensor, cumulative: Tensor, longest: int, dropout_p: float) -> Tensor:
        seen.extend([cumulative.tolist(), longest, dropout_p])
        return reference(qkv, cumulative.diff().tolist())

    fake = types.ModuleType("flash_attn")
    monkeypatch.setattr(fake, "flash_attn_varlen_qkvpacked_func", packed, raising=False)
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    qkv = torch.randn(9, 3, HEADS, SIZE)
    layout = Layout(torch.tensor([5, 4]), 5, "flash_attn")
    assert layout.arrange(qkv.flatten(1)).data_ptr() == qkv.data_ptr()
    torch.testing.assert_close(attend(qkv, layout, 0.1), reference(qkv, [5, 4]))
    assert seen == [[0, 5, 9], 5, 0.1]


def put_fa4(monkeypatch: pytest.MonkeyPatch, function: Callable[..., object]) -> None:
    """Let `flash_attn.cute` be a module with this `flash_attn_varlen_func`."""
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["flash_attn.cute"], "flash_attn_varlen_func", function, raising=False)


def test_flash_attention_4_is_called_with_the_bounds_and_gives_its_first_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, object] = {}

    def varlen(q: Tensor, k: Tensor, v: Tensor, **more: object) -> tuple[Tensor, Tensor]:
        seen.update(more)
        assert isinstance(more["cu_seqlens_q"], Tensor)
        return reference(torch.stack([q, k, v], 1), more["cu_seqlens_q"].diff().tolist()), torch.zeros(HEADS, len(q))

    put_fa4(monkeypatch, varlen)
    qkv = torch.randn(9, 3, HEADS, SIZE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layout = Layout(torch.tensor([5, 4]), 6, "fa4")
    assert layout.arrange(qkv.flatten(1)).data_ptr() == qkv.data_ptr()
    found, wanted = attend(qkv, layout, 0.0), reference(qkv, [5, 4])
    torch.testing.assert_close(found, wanted)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    mine, theirs = (torch.autograd.grad((out * weight).sum(), qkv)[0] for out in (found, wanted))
    torch.testing.assert_close(mine, theirs)
    assert seen.pop("cu_seqlens_q") is seen.pop("cu_seqlens_k")
    assert layout.cumulative.dtype == torch.int32
    assert seen == {"max_seqlen_q": 6, "max_seqlen_k": 6}
    with pytest.raises(AssertionError):
        attend(qkv, layout, 0.1)


@pytest.mark.long
def test_the_call_of_flash_attention_4_is_one_that_the_package_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    cute = pytest.importorskip("flash_attn.cute")
    signature, seen = inspect.signature(cute.flash_attn_varlen_func), list[inspect.BoundArguments]()

    def varlen(*others: object, **more: object) -> tuple[Tensor, Tensor]:
        seen.append(signature.bind(*others, **more))
        return torch.zeros(9, HEADS, SIZE), torch.zeros(HEADS, 9)

    put_fa4(monkeypatch, varlen)
    attend(torch.zeros(9, 3, HEADS, SIZE), Layout(torch.tensor([5, 4]), 5, "fa4"), 0.0)
    (call,) = seen
    call.apply_defaults()
    plain = {"causal": False, "softcap": 0.0, "softmax_scale": None, "window_size": (None, None), "score_mod": None}
    assert {name: call.arguments[name] for name in plain} == plain


def test_an_encoder_says_how_large_its_heads_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def automatic(device: torch.device, precision: torch.dtype, head_size: int) -> str:
        seen.append(head_size)
        return "grouped"

    monkeypatch.setattr(attention, "automatic_attention", automatic)
    shape = EncoderShape(layers=1, width=40, heads=2, feed_forward=48, positions=64)
    Encoder(shape, 0.0, 0.0, recompute=False)(torch.zeros(9, 40), layout_of([5, 4]))
    assert seen == [20]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_variable_length_kernel_agrees_with_the_grouped_one() -> None:
    lengths = [1, 7, 64, 130]
    qkv = torch.randn(sum(lengths), 3, 4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    device = torch.device("cuda")
    fast = attend_packed(qkv.to(device), Layout(torch.tensor(lengths, device=device), max(lengths)), 0.0)
    torch.testing.assert_close(fast.cpu(), attend_packed(qkv, layout_of(lengths), 0.0), atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["varlen", "flash_attn", "fa4"])
def test_gradients_of_the_variable_length_kernels_agree_with_the_grouped_ones(backend: str) -> None:
    if reason := CANDIDATES["attention"][backend][1](Situation("cuda", torch.bfloat16)):
        pytest.skip(reason)
    lengths = [1, 7, 64, 130]
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 4, 64, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(sum(lengths), 4, 64, generator=generator).bfloat16()
    (wanted,) = torch.autograd.grad((attend_packed(qkv, layout_of(lengths), 0.0) * weight).sum(), qkv)
    there = qkv.detach().cuda().requires_grad_()
    layout = Layout(torch.tensor(lengths, device="cuda"), max(lengths), backend)
    (found,) = torch.autograd.grad((attend_packed(there, layout, 0.0) * weight.cuda()).sum(), there)
    torch.testing.assert_close(found.cpu(), wanted, atol=3e-2, rtol=3e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_dropout_of_the_variable_length_kernel_repeats_with_the_seed_and_keeps_the_mean() -> None:
    lengths = [64] * 32
    qkv = torch.randn(sum(lengths), 3, 4, 64, generator=torch.Generator().manual_seed(0)).bfloat16().cuda()
    layout = Layout(torch.tensor(lengths, device="cuda"), max(lengths), "varlen")
    outcomes = []
    for seed in (1, 1, *range(2, 200)):
        torch.manual_seed(seed)
        outcomes.append(attend_packed(qkv, layout, 0.5).float())
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])
    mean, plain = torch.stack(outcomes[1:]).mean(0), attend_packed(qkv, layout, 0.0).float()
    assert float((mean - plain).norm()) < 0.2 * float(plain.norm())
