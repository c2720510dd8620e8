import inspect

import pytest
import torch
import torch.nn.functional as F

from m3p.kernels.obstacles import NO_APEX
from m3p.kernels.residual_norm import residual_norm
from tests.kernels.triton_run import COMPILED, compile_kernel, interpret

INTERPRETED = """
import torch
from m3p.kernels import residual_norm_triton as fused
from m3p.kernels.residual_norm import residual_norm
fused.PROGRAMS = 3
generator = torch.Generator().manual_seed(0)
def make(rows, width, kind):
    shapes = [(rows, width), (rows, width), (width,), (width,), (width,), (rows, width)]
    made = [torch.randn(shape, generator=generator).to(kind).requires_grad_() for shape in shapes]
    return made[:5], made[5].detach()
def run(kernel, dropout=0.0):
    return lambda x, added, weight, bias, more: residual_norm(x, added, weight, bias, 1e-5, dropout, kernel, more)
def outcome(tensors, weights, function):
    out = function(*tensors)
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)]
def error(found, wanted):
    return max(float((one.double() - other).norm() / other.norm().clamp(min=1e-12)) for one, other in zip(found, wanted))
for kind, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-2)):
    for rows, width in ((1, 3), (5, 16), (7, 50)):  # of one number, the plain form gives rounding errors, not 0
        tensors, weights = make(rows, width, kind)
        found, wanted = (outcome(tensors, weights, run(kernel)) for kernel in ("triton", "torch"))
        without = [outcome(tensors[:4], weights, lambda *t: run(k)(*t, None)) for k in ("triton", "torch")]
        for mine, theirs in zip(*without, strict=True):
            torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.dtype == kind
            torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)
# The norm for two operations: the gradients of both are added, and so is none of an operation that does not use it.
def twice(kernel, up, more):
    def both(*tensors):
        if kernel == "torch":
            value = residual = run("torch")(*tensors)
        else:
            value, residual = fused.residual_norm_triton(*tensors[:4], 1e-5, 0.0, tensors[4])
            assert torch.equal(value, residual)
        return (value * up).sum() + (0.0 if more is None else (residual * more).sum())
    return both
def of_both(tensors, kernel, up, more):
    return torch.autograd.grad(twice(kernel, up, more)(*tensors), tensors)
for rows, width in ((1, 3), (7, 50)):
    tensors, up = make(rows, width, torch.float32)
    for more in (None, torch.randn(rows, width, generator=generator)):
        for mine, theirs in zip(*(of_both(tensors, kernel, up, more) for kernel in ("triton", "torch")), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
# In bfloat16, as near to the exact outcome as the plain form comes.
tensors, up = make(7, 50, torch.bfloat16)
more = torch.randn(7, 50, generator=generator).bfloat16()
exact = of_both([one.detach().double().requires_grad_() for one in tensors], "torch", up.double(), more.double())
errors = {kernel: error(of_both(tensors, kernel, up, more), exact) for kernel in ("triton", "torch")}
assert 0 < errors["triton"] <= 1.1 * errors["torch"] < 0.02, errors
# With dropout: what is dropped shows in the gradient of what was added; the rest must be as if that mask had been given.
tensors, weights = make(40, 50, torch.float32)
torch.manual_seed(1)
found = outcome(tensors, weights, run("triton", 0.25))
mask = (found[2] != 0).float()
assert abs(mask.mean() - 0.75) < 0.04, mask.mean()
assert mask.unique(dim=0).shape[0] == 40
assert mask.unique(dim=1).shape[1] == 50
wanted = outcome(tensors, weights, lambda x, h, w, b, more: run("torch")(x, (h + more) * mask / 0.75, w, b, None))
for mine, theirs in zip(found, wanted, strict=True):
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
again = run("triton", 0.25)(*tensors)
assert not torch.equal(again, found[0])
torch.manual_seed(1)
assert torch.equal(run("triton", 0.25)(*tensors), found[0])
# No slots.
tensors, up = make(0, 16, torch.float32)
out, *gradients = outcome(tensors, up, run("triton", 0.25))
assert out.shape == (0, 16) and all(not one.any() for one in gradients)
# Tensors whose rows do not lie end to end, and gradients that are one number, repeated.
tensors, up = make(7, 50, torch.float32)
x, *others = (one.detach() for one in tensors)
apart = [x.T.contiguous().T, *(torch.stack([one] * 2, -1)[..., 0] for one in others)]
apart = [one.requires_grad_() for one in apart]
assert not any(one.is_contiguous() for one in apart)
found = torch.autograd.grad(run("triton")(*apart).sum(), apart)
wanted = torch.autograd.grad(run("torch")(*tensors).sum(), tensors)
for mine, theirs in zip(found, wanted, strict=True):
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
# A dropout of nearly all, to which 1 is the nearest chance that 16 bits give: nothing is added.
found, wanted = run("triton", 0.999999)(*tensors), run("torch")(x, torch.zeros_like(x), *tensors[2:4], None)
torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
"""


def test_the_plain_form_is_layer_norm_of_the_sum() -> None:
    x, added = torch.randn(2, 3, 8).unbind()
    weight, bias = torch.randn(2, 8).unbind()
    torch.testing.assert_close(
        residual_norm(x, added, weight, bias, 1e-5, 0.0), F.layer_norm(x + added, (8,), weight, bias, 1e-5)
    )


@pytest.mark.program
def test_the_kernel_equals_the_plain_form_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.long
@pytest.mark.parametrize(("capability", "kind"), COMPILED)
@pytest.mark.parametrize("drop", [False, True])
def test_the_kernels_compile(capability: int, kind: str, drop: bool) -> None:
    pytest.importorskip("triton")
    from m3p.kernels import residual_norm_triton as fused

    same, wide, number = f"*{kind}", "*fp32", "i32"
    constants: dict[str, int] = {"BIASED": drop, "DROP": drop, "ROWS": 4, "BLOCK": 1024}
    others = dict.fromkeys(["rows", "width", "threshold"], number) | {
        "factor": "fp32",
        "seeds": "*i64" if drop else wide,
    }
    others |= dict.fromkeys(["mean", "scale"], wide) | dict.fromkeys(constants, "constexpr")
    tensors = dict.fromkeys(["x", "added", "added_bias", "weight", "bias", "total", "out"], same)
    assert compile_kernel(fused.forward_kernel, {**tensors, **others, "eps": "fp32"}, constants, capability)
    tensors = dict.fromkeys(["upstream", "more", "total", "weight", "grad_x", "grad_added"], same)
    sums = dict.fromkeys(["grad_weight", "grad_bias", "grad_added_bias"], wide) | {"TWICE": "constexpr"}
    constants["TWICE"] = drop
    assert compile_kernel(fused.backward_kernel, {**tensors, **sums, **others}, constants, capability)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_on_a_gpu_the_kernel_equals_the_plain_form(kind: torch.dtype, tolerance: float, dropout: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(700, 768), (700, 768), (768,), (768,), (700, 768)]
    x, added, weight, bias, up = (torch.randn(s, generator=generator).to("cuda", kind).requires_grad_() for s in shapes)
    out = residual_norm(x, added, weight, bias, 1e-5, dropout, "triton")
    found = [out, *torch.autograd.grad((out * up.detach()).sum(), (x, added, weight, bias))]
    mask = (found[2] != 0).to(kind) / (1 - dropout) if dropout else torch.ones_like(x)
    plain = residual_norm(x, added * mask, weight, bias, 1e-5, 0.0)
    wanted = [plain, *torch.autograd.grad((plain * up.detach()).sum(), (x, added, weight, bias))]
    for mine, theirs in zip(found, wanted, strict=True):
        assert float((mine.float() - theirs.float()).norm()) < tolerance * float(theirs.float().norm())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_on_a_gpu_apex_equals_the_plain_form(dropout: float) -> None:
    pytest.importorskip("fused_layer_norm_cuda", reason=NO_APEX)
    x, added = (torch.randn(70, 768, device="cuda", requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(768, device="cuda", requires_grad=True) for _ in range(2))
    outcomes = []
    for kernel in ("apex", "torch"):
        torch.manual_seed(0)
        out = residual_norm(x, added, weight, bias, 1e-5, dropout, kernel)
        outcomes.append([out, *torch.autograd.grad(out.square().sum(), (x, added, weight, bias))])
    for mine, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def test_apex_takes_the_call_that_is_made() -> None:
    module = pytest.importorskip("apex.normalization.fused_layer_norm", reason=NO_APEX)
    x, weight = torch.randn(5, 8), torch.randn(8)
    inspect.signature(module.fused_layer_norm_affine).bind(x, weight, weight, weight.shape, 1e-5)
