"""Triton's attention against the plain form, which has one call for the sequences of each length."""

import pytest
import torch
from torch import Tensor

from m3p.kernels.obstacles import HEAD_SIZES
from m3p.model.attention import Layout, attend
from tests.kernels.triton_run import COMPILED, compile_kernel, interpret

INTERPRETED = """
import torch
import triton
import triton.language as tl
from m3p.kernels import attention_triton as fused
from tests.kernels.test_attention_triton import outcome, packed
fused.shape_of = lambda size, kind: {"BLOCK": 16, "SIZE": size}
def near(found, wanted, tolerance=1e-5):
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)
# Odd lengths, one slot, a full block, three blocks, none at all; every size of a head.
for size, lengths in ((32, [7, 1, 16, 0, 35]), (64, [1]), (128, [3])):
    qkv, up = packed(lengths, size, torch.float32)
    near(outcome(qkv, up, lengths, "triton"), outcome(qkv, up, lengths, "grouped"))
# Large scores, of which plain exponentials would overflow.
qkv, up = packed([19], 32, torch.float32)
with torch.no_grad():
    qkv *= 30
for mine, theirs in zip(*(outcome(qkv, up, [19], backend) for backend in ("triton", "grouped")), strict=True):
    assert (mine - theirs).norm() <= 1e-3 * theirs.norm()
# A sequence that holds no numbers stays alone with them, also where it shares a block's worth of slots with others.
qkv, up = packed([3, 2, 5], 32, torch.float32)
with torch.no_grad():
    qkv[3:5] = float("nan")
for one in outcome(qkv, up, [3, 2, 5], "triton"):
    assert one[3:5].isnan().all() and one[:3].isfinite().all() and one[5:].isfinite().all()
# Slots that do not lie end to end, and a gradient that is one number, repeated.
lengths = [5, 3]
qkv, _ = packed(lengths, 32, torch.float32)
apart = torch.stack([qkv.detach()] * 2, -1)[..., 0].requires_grad_()
assert not apart.is_contiguous()
ones = torch.ones(()).expand(8, 2, 32)
near(outcome(apart, ones, lengths, "triton"), outcome(qkv, ones, lengths, "grouped"))
# No slots.
qkv, up = packed([], 32, torch.float32)
out = fused.attention_triton(qkv, *torch.zeros(2, 0, dtype=torch.int64))
assert out.shape == (0, 2, 32) and not torch.autograd.grad(out, qkv, up)[0].any()
# In 16 bits, as near to the exact outcome as the plain form comes. The interpreter multiplies the bit patterns of bfloat16, so
# products are made in float32 here; and it cuts bfloat16 off where a GPU rounds: twice the error, always towards zero.
@triton.jit
def product(a, b):
    return tl.dot(a.to(tl.float32), b.to(tl.float32))
fused.product = product
lengths = [18]
for kind, times in ((torch.bfloat16, 3), (torch.float16, 1.3)):
    qkv, up = packed(lengths, 32, kind)
    exact = outcome(qkv.detach().double().requires_grad_(), up.double(), lengths, "grouped")
    plain, found = (outcome(qkv, up, lengths, backend) for backend in ("grouped", "triton"))
    for mine, theirs, wanted in zip(found, plain, exact, strict=True):
        errors = [float((one.double() - wanted).norm() / wanted.norm()) for one in (mine, theirs)]
        assert mine.dtype == kind
        assert 0 < errors[0] <= times * errors[1] < 0.02, (kind, errors)
"""


def packed(lengths: list[int], size: int, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return queries, keys and values [T, 3, 2, size], and an upstream gradient [T, 2, size]."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 2, size, generator=generator).to(kind).requires_grad_()
    return qkv, torch.randn(sum(lengths), 2, size, generator=generator).to(kind)


def outcome(qkv: Tensor, up: Tensor, lengths: list[int], backend: str) -> list[Tensor]:
    """Return the output, and the gradient of `qkv`, both in the packed order."""
    kept = [length for length in lengths if length or backend == "triton"]
    layout = Layout(torch.tensor(kept, device=qkv.device), max(kept), backend)
    arranged = layout.arrange(qkv.flatten(1)).view(qkv.shape)
    out = layout.restore(attend(arranged, layout, 0.0).flatten(1)).view(-1, *qkv.shape[2:])
    return [out.detach(), *torch.autograd.grad(out, qkv, up)]


@pytest.mark.program
def test_the_kernels_equal_the_plain_form_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.long
@pytest.mark.parametrize(("capability", "kind"), COMPILED)
def test_the_kernels_compile(capability: int, kind: str) -> None:
    pytest.importorskip("triton")
    from m3p.kernels import attention_triton as fused

    size = 64 if (capability, kind) == (90, "bf16") else 32  # the published size once: it takes three times as long
    options = fused.shape_of(size, torch.float32 if kind == "fp32" else torch.bfloat16)
    constants = {name: options.pop(name) for name in ("BLOCK", "SIZE")}
    others = {"starts": "*i64", "lengths": "*i64", "log_sums": "*fp32", "total": "i32", "heads": "i32", "scale": "fp32"}
    others |= dict.fromkeys(constants, "constexpr")
    tensors = dict.fromkeys(["qkv", "out"], f"*{kind}")
    assert compile_kernel(fused.forward_kernel, {**tensors, **others}, constants, capability, **options)
    tensors |= dict.fromkeys(["upstream", "grad_qkv"], f"*{kind}")
    assert compile_kernel(fused.backward_kernel, {**tensors, **others}, constants, capability, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("size", HEAD_SIZES)
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_on_a_gpu_the_kernels_come_near_the_exact_outcome_and_repeat_it(
    kind: torch.dtype, tolerance: float, size: int
) -> None:
    lengths = [1, 7, 64, 130, 300, *[33] * 200]
    qkv, up = (tensor.detach().cuda().requires_grad_() for tensor in packed(lengths, size, kind))
    found, again = (outcome(qkv, up.detach(), lengths, "triton") for _ in range(2))
    exact = outcome(qkv.detach().double().requires_grad_(), up.detach().double(), lengths, "grouped")
    for mine, same, wanted in zip(found, again, exact, strict=True):
        assert torch.equal(mine, same)
        assert float((mine.double() - wanted).norm()) < tolerance * float(wanted.norm())
