"""The parts of `variants.py` that time operations in its own process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from timing import Clock, Row, relative_error
from torch import Tensor

from m3p.kernels.cross_entropy import linear_cross_entropy
from m3p.kernels.residual_norm import residual_norm
from m3p.model.attention import Layout, attend

Call = Callable[..., Tensor]
EPS = 1e-5


@dataclass(frozen=True)
class Sizes:
    """What is measured; by default a pair turn of 512 samples in the published network."""

    slots: int = 139_520
    width: int = 768
    heads: int = 12
    words: int = 250_002
    masked: tuple[int, ...] = (787, 5_069, 16_000)
    chunks: tuple[int, ...] = (1_024, 4_096, 16_384)
    square: int = 8_192
    """Of one large multiplication."""
    copied: int = 1 << 32
    """Bytes that are copied on the device; a twelfth of that from the host."""

    @staticmethod
    def tiny() -> "Sizes":
        """Return sizes to see that everything runs."""
        return Sizes(160, 32, 2, 100, (3,), (2, 8), 16, 1 << 12)


@dataclass(frozen=True)
class Variant:
    """A way to compute something."""

    name: str
    call: Call
    exact: Call | None = None
    """The same without random numbers, of which the error is taken; None where `call` draws none."""


def ceilings(clock: Clock, sizes: Sizes) -> Iterator[Row]:
    """Yield what the device can do at best."""
    device, kind = clock.device, _kind(clock)
    source = torch.empty(sizes.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    row = clock.row("ceilings", "copy on the device", lambda: target.copy_(source))
    yield replace(row, figures={"TB/s, read and written": 2 * sizes.copied / row.seconds / 1e12})
    square = torch.randn(sizes.square, sizes.square, device=device, dtype=kind)
    row = clock.row("ceilings", f"{sizes.square}^3", lambda: square @ square)
    yield replace(row, figures={"TFLOP/s": 2 * sizes.square**3 / row.seconds / 1e12})
    host = torch.empty(sizes.copied // 12, dtype=torch.uint8, pin_memory=device.type == "cuda")
    row = clock.row("ceilings", "host to device", lambda: target[: len(host)].copy_(host, non_blocking=True))
    yield replace(row, figures={"GB/s": len(host) / row.seconds / 1e9})
    one = torch.zeros(1, device=device)
    yield clock.row("ceilings", "empty launch", lambda: one.add_(1))


def gemm(clock: Clock, sizes: Sizes) -> Iterator[Row]:
    """Yield the linear layers of an encoder layer: forward with bias, and the gradients of input and weight."""
    wide, kind = 4 * sizes.width, _kind(clock)
    shapes = {"qkv": (sizes.width, 3 * sizes.width), "out": (sizes.width, sizes.width)}
    shapes |= {"up": (sizes.width, wide), "down": (wide, sizes.width)}
    for name, (inner, outer) in shapes.items():
        x = torch.randn(sizes.slots, inner, device=clock.device, dtype=kind)
        up = torch.randn(sizes.slots, outer, device=clock.device, dtype=kind)
        weight = torch.randn(outer, inner, device=clock.device, dtype=kind) / inner**0.5
        bias = torch.zeros(outer, device=clock.device, dtype=kind)
        error = relative_error([F.linear(x[:256], weight, bias)], [F.linear(x[:256].float(), weight.float())])
        calls: dict[str, Callable[[], Tensor]] = {
            "forward": lambda x=x, weight=weight, bias=bias: F.linear(x, weight, bias),  # type: ignore[misc]
            "forward, no bias": lambda x=x, weight=weight: F.linear(x, weight),  # type: ignore[misc]
            "input gradient": lambda up=up, weight=weight: up @ weight,  # type: ignore[misc]
            "weight gradient": lambda up=up, x=x: up.T @ x,  # type: ignore[misc]
        }
        for what, call in calls.items():
            row = clock.row("gemm", f"{name}, {what}", call, error if what == "forward" else None)
            yield replace(row, figures={"TFLOP/s": 2 * sizes.slots * inner * outer / row.seconds / 1e12})


def norm(clock: Clock, sizes: Sizes) -> Iterator[Row]:
    """Yield dropout, residual and layer norm, forward and backward."""
    shapes = [(sizes.slots, sizes.width)] * 2 + [(sizes.width,)] * 3
    tensors = [torch.randn(shape, device=clock.device, dtype=_kind(clock)).requires_grad_() for shape in shapes]

    def form(kernel: str, dropout: float) -> Call:
        return lambda x, added, weight, bias, more: residual_norm(x, added, weight, bias, EPS, dropout, kernel, more)

    plain = form("torch", 0.0)
    variants = [Variant("torch", form("torch", 0.1), plain), Variant("torch, no dropout", plain)]
    if clock.device.type == "cuda":
        compiled, triton = torch.compile(plain), form("triton", 0.0)
        variants += [
            Variant("compiled", torch.compile(form("torch", 0.1)), compiled),
            Variant("compiled, no dropout", compiled),
        ]
        variants += [Variant("triton", form("triton", 0.1), triton), Variant("triton, no dropout", triton)]
    yield from _forms("norm", clock, tensors, variants, plain)


def gelu(clock: Clock, sizes: Sizes) -> Iterator[Row]:
    """Yield GELU behind a bias, forward and backward with the gradient of the bias."""
    shapes = [(sizes.slots, 4 * sizes.width), (4 * sizes.width,)]
    tensors = [torch.randn(shape, device=clock.device, dtype=_kind(clock)).requires_grad_() for shape in shapes]

    def plain(x: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(x + bias)

    variants = [Variant("torch", plain)]
    if clock.device.type == "cuda":
        variants.append(Variant("compiled", torch.compile(plain)))
    yield from _forms("gelu", clock, tensors, variants, plain)


def attention(clock: Clock, sizes: Sizes) -> Iterator[Row]:
    """Yield attention over sequences of the lengths of a pair turn, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 141, (max(4, sizes.slots // 73),), generator=generator)
    lengths = lengths[lengths.cumsum(0) <= sizes.slots]
    ordered, size = lengths.sort().values, sizes.width // sizes.heads
    qkv = torch.randn(
        int(lengths.sum()), 3, sizes.heads, size, device=clock.device, dtype=_kind(clock)
    ).requires_grad_()

    def form(order: Tensor, backend: str) -> Call:
        layout = Layout(order.to(clock.device), int(order.max()), backend)
        layout.arrange(qkv.detach().flatten(1))  # `grouped` learns its groups; in the order of lengths nothing moves
        return lambda qkv: attend(qkv, layout, 0.0)

    variants, grouped = [], form(ordered, "grouped")
    if clock.device.type == "cuda":
        # Numbers are random, so in another order other sequences are as good; the error is of the one that `grouped` has.
        sorted_by_length = form(ordered, "varlen")
        variants = [Variant("varlen", form(lengths, "varlen"), sorted_by_length)]
        variants.append(Variant("varlen, sorted by length", sorted_by_length))
    yield from _forms("attention", clock, [qkv], [*variants, Variant("grouped", grouped)], grouped)


def head(clock: Clock, sizes: Sizes) -> Iterator[Row]:
    """Yield the word loss with its gradients, as it is and with other chunks."""
    kind, device = _kind(clock), clock.device
    weight = (torch.randn(sizes.words, sizes.width, device=device, dtype=kind) * 0.02).requires_grad_()
    bias = torch.zeros(sizes.words, device=device, dtype=kind, requires_grad=True)
    for count in sizes.masked:
        rows = torch.randn(count, sizes.width, device=device, dtype=kind, requires_grad=True)
        labels = torch.randint(sizes.words, (count,), device=device)
        variants: dict[str, Call] = {"as it is": lambda r, w, b, labels=labels: linear_cross_entropy(r, w, b, labels)}
        for chunk in sizes.chunks:
            variants[f"chunks of {chunk}"] = lambda r, w, b, labels=labels, chunk=chunk: linear_cross_entropy(
                r, w, b, labels, chunk_rows=chunk
            )
        few = slice(0, min(count, 64))
        exact = linear_cross_entropy(rows[few].float(), weight.float(), bias.float(), labels[few])
        error = relative_error([linear_cross_entropy(rows[few], weight, bias, labels[few])], [exact])
        for name, call in [*variants.items(), ("again", variants["as it is"])]:
            yield clock.row(f"head, {count} words", name, _both(call, [rows, weight, bias]), error)


def _forms(part: str, clock: Clock, tensors: list[Tensor], variants: list[Variant], reference: Call) -> Iterator[Row]:
    """Yield forward and backward of each variant, the first of them twice, with their errors to `reference` in float32."""
    wanted = _outcome(reference, [tensor.detach().float().requires_grad_() for tensor in tensors])
    for one in [*variants, replace(variants[0], name="again")]:
        error = relative_error(_outcome(one.exact or one.call, tensors), wanted)
        yield clock.row(part, one.name, _both(one.call, tensors), error)


def _outcome(call: Call, tensors: list[Tensor]) -> list[Tensor]:
    """Return the results and the gradients of a form."""
    out = call(*tensors)
    upstream = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, upstream)]


def _both(call: Call, tensors: list[Tensor]) -> Callable[[], object]:
    """Return forward and backward of a form, with an upstream gradient of ones."""

    def run() -> object:
        out = call(*tensors)
        return torch.autograd.grad(out, tensors, torch.ones_like(out))

    return run


def _kind(clock: Clock) -> torch.dtype:
    return torch.bfloat16 if clock.device.type == "cuda" else torch.float32


PARTS: dict[str, Callable[[Clock, Sizes], Iterator[Row]]] = {
    "ceilings": ceilings, "gemm": gemm, "norm": norm, "gelu": gelu, "attention": attention, "head": head,
}  # fmt: skip
