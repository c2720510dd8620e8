import pytest
import torch
import torch.nn.functional as F

from m3p.kernels.bias_gelu import bias_gelu
from tests.kernels.triton_run import COMPILED, compile_kernel, interpret

INTERPRETED = """
import torch
from m3p.kernels import bias_gelu_triton as fused
from m3p.kernels.bias_gelu import bias_gelu
fused.PROGRAMS, fused.BLOCK = 2, 16
generator = torch.Generator().manual_seed(0)
def make(rows, width, kind):
    shapes = (rows, width), (width,), (rows, width)
    made = [3 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [one.to(kind).requires_grad_() for one in made[:2]], made[2].to(kind)
def outcome(kernel, tensors, up):
    out = bias_gelu(*tensors, kernel)
    return [out, *torch.autograd.grad(out, tensors, up)]
for rows, width in ((1, 1), (5, 16), (23, 50)):
    tensors, up = make(rows, width, torch.float32)
    for mine, theirs in zip(*(outcome(kernel, tensors, up) for kernel in ("triton", "torch")), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
# In 16 bits, as near to the exact outcome as the plain form comes. The interpreter cuts bfloat16 off where a GPU rounds: each of
# two roundings has twice the error, and both go towards zero.
for kind, times in ((torch.bfloat16, 3), (torch.float16, 1.1)):
    tensors, up = make(23, 50, kind)
    exact = outcome("torch", [one.detach().double().requires_grad_() for one in tensors], up.double())
    for mine, theirs, wanted in zip(outcome("triton", tensors, up), outcome("torch", tensors, up), exact, strict=True):
        assert mine.dtype == kind
        assert 0 < (mine - wanted).norm() <= times * (theirs - wanted).norm() < 0.01 * wanted.norm(), (mine, theirs, wanted)
# No slots.
tensors, up = make(0, 50, torch.float32)
out, *gradients = outcome("triton", tensors, up)
assert out.shape == (0, 50) and all(not one.any() for one in gradients)
# An input and a bias whose numbers do not lie end to end, and a gradient that is one number, repeated.
tensors, _ = make(5, 7, torch.float32)
apart = [tensors[0].detach().T.contiguous().T, torch.stack([tensors[1].detach()] * 2, 1)[:, 0]]
apart = [one.requires_grad_() for one in apart]
found, wanted = (torch.autograd.grad(bias_gelu(*of, kernel).sum(), of) for kernel, of in (("triton", apart), ("torch", tensors)))
for mine, theirs in zip(found, wanted, strict=True):
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
"""


def test_the_plain_form_is_gelu_of_the_sum() -> None:
    x, bias = torch.randn(3, 8), torch.randn(8)
    torch.testing.assert_close(bias_gelu(x, bias), F.gelu(x + bias))


@pytest.mark.program
def test_the_kernels_equal_the_plain_form_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.long
@pytest.mark.parametrize(("capability", "kind"), COMPILED)
def test_the_kernels_compile(capability: int, kind: str) -> None:
    pytest.importorskip("triton")
    from m3p.kernels import bias_gelu_triton as fused

    constants = {"ROWS": fused.ROWS, "BLOCK": fused.BLOCK}
    others = {"rows": "i32", "width": "i32"} | dict.fromkeys(constants, "constexpr")
    tensors = dict.fromkeys(["x", "bias", "out"], f"*{kind}")
    assert compile_kernel(fused.forward_kernel, {**tensors, **others}, constants, capability)
    tensors = dict.fromkeys(["upstream", "x", "bias", "grad_x"], f"*{kind}")
    assert compile_kernel(fused.backward_kernel, {**tensors, "grad_bias": "*fp32", **others}, constants, capability)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_on_a_gpu_the_kernels_come_near_the_exact_outcome(kind: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7001, 3072), (3072,), (7001, 3072)]
    x, bias, up = (torch.randn(shape, generator=generator).to("cuda", kind) for shape in shapes)
    outcomes = []
    for kernel, cast in (("triton", kind), ("torch", torch.float64)):
        tensors = [x.to(cast).requires_grad_(), bias.to(cast).requires_grad_()]
        out = bias_gelu(tensors[0], tensors[1], kernel)
        outcomes.append([out, *torch.autograd.grad(out, tensors, up.to(cast))])
    for mine, theirs in zip(*outcomes, strict=True):
        assert float((mine.double() - theirs).norm()) < tolerance * float(theirs.norm())
