import pytest

from tests.kernels.triton_run import COMPILED, compile_kernel, interpret

pytest.importorskip("triton")

INTERPRETED = """
import torch
from m3p.kernels import cross_entropy_triton as fused
from m3p.kernels.cross_entropy import loss_and_gradient_reference
fused.BLOCK = 16
for kind, tolerance in ((torch.float32, 2e-6), (torch.float16, 2e-3)):
    for rows, words in ((1, 1), (3, 16), (5, 50)):
        generator = torch.Generator().manual_seed(rows)
        logits = (torch.randn(rows, words, generator=generator) * 20).to(kind)
        labels = torch.randint(words, (rows,), generator=generator)
        bias = (torch.randn(words, generator=generator) * 5).to(kind)
        for factors in (None, torch.rand(rows, generator=generator)):
            wanted = loss_and_gradient_reference(logits.float() + bias.float(), labels, factors)
            found = fused.loss_and_gradient_triton(logits.clone(), bias, labels, factors)
            torch.testing.assert_close(found[0], wanted[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found[1].float(), wanted[1], atol=tolerance, rtol=0)
# The whole head, chunk by chunk, with all its gradients.
from m3p.kernels.cross_entropy import linear_cross_entropy
generator = torch.Generator().manual_seed(7)
rows, weight, bias = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((7, 12), (50, 12), (50,)))
labels = torch.randint(50, (7,), generator=generator)
outcomes = []
for kernel in ("triton", "torch"):
    loss = linear_cross_entropy(rows, weight, bias, labels, 3, kernel)
    outcomes.append([loss, *torch.autograd.grad(loss, (rows, weight, bias))])
for mine, theirs in zip(*outcomes, strict=True):
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
# A label that is no word is not read from what lies beside the row: its loss is not a number, and the others' losses are theirs.
logits, bias = torch.randn(4, 50, generator=generator), torch.randn(50, generator=generator)
losses, _ = fused.loss_and_gradient_triton(logits.clone(), bias, torch.tensor([50, 3, -1, -100]))
assert losses.isnan().tolist() == [True, False, True, True], losses
# Labels, factors and biases that do not lie end to end.
labels, factors = torch.randint(50, (4, 2), generator=generator), torch.rand(4, 2, generator=generator)
apart = torch.stack([bias, bias + 1], 1)
wanted = loss_and_gradient_reference(logits + bias, labels[:, 0], factors[:, 0])
found = fused.loss_and_gradient_triton(logits.clone(), apart[:, 0], labels[:, 0], factors[:, 0])
for mine, theirs in zip(found, wanted, strict=True):
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
# No rows.
assert len(fused.loss_and_gradient_triton(logits[:0], bias, labels[:0, 0])[0]) == 0
# Rows so far apart that their places are no 32-bit numbers, as in 20,000 rows of 250,002 words. Most of this is never touched.
import mmap
stride = 2**30 + 8
memory = mmap.mmap(-1, 2 * (2 * stride + 50), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE
far = torch.frombuffer(memory, dtype=torch.float16).as_strided((3, 50), (stride, 1))
far.copy_(logits[:3])
near = logits[:3].half()
found, wanted = (fused.loss_and_gradient_triton(of, bias.half(), labels[:3, 1]) for of in (far, near))
for mine, theirs in zip(found, wanted, strict=True):
    assert torch.equal(mine, theirs)
"""


@pytest.mark.program
def test_the_kernel_equals_its_reference_in_the_interpreter() -> None:
    interpret(INTERPRETED)


@pytest.mark.long
@pytest.mark.parametrize(
    ("capability", "kind", "weighted"), [*((*one, True) for one in COMPILED), (*COMPILED[0], False)]
)
def test_the_kernel_compiles(capability: int, kind: str, weighted: bool) -> None:
    from m3p.kernels import cross_entropy_triton as fused

    signature = {
        "logits": f"*{kind}",
        "bias": f"*{kind}",
        "labels": "*i64",
        "factors": "*fp32",
        "losses": "*fp32",
        "vocabulary": "i32",
        "stride": "i32",
    }
    constants = {"WEIGHTED": weighted, "BLOCK": fused.BLOCK}
    signature |= dict.fromkeys(constants, "constexpr")
    assert compile_kernel(fused.cross_entropy_kernel, signature, constants, capability)
