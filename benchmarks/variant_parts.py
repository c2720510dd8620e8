"""The parts of `variants.py` that time operations in its own process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timing import Clock, Failed, Missing, Row, attempt, relative_error
from torch import Tensor

from m3p.kernels.bias_gelu import bias_gelu
from m3p.kernels.choice import CANDIDATES
from m3p.kernels.cross_entropy import SLICE, linear_cross_entropy
from m3p.kernels.feed_forward_quack import feed_forward_quack
from m3p.kernels.obstacles import Situation
from m3p.kernels.residual_norm import Twice, apart, residual_norm
from m3p.model.attention import Layout, attend

Call = Callable[..., Any]
"""Returns a tensor, or a tuple of them."""
Rows = Iterator[Row | Failed | Missing]
EPS = 1e-5
SUMS = "float32 sums of queries alone, filled and converted"
UNITS = (64, 128)
"""Multiples to which the vocabulary is padded."""


@dataclass(frozen=True)
class Sizes:
    """What is measured; by default a pair turn of 512 samples in the published network."""

    slots: int = 139_520
    width: int = 768
    heads: int = 12
    words: int = 250_002
    masked: tuple[int, ...] = (787, 5_069, 16_000)
    chunks: tuple[int, ...] = (1_024, 4_096, 16_384)
    regions: int = 39_516
    """Regions of the pictures of a pair turn, and the numbers of a feature below."""
    feature: int = 2_048
    rows: int = 100_000
    """Words and regions from which the slots of a pair turn are put together."""
    square: int = 8_192
    """Of one large multiplication."""
    copied: int = 1 << 32
    """Bytes that are copied on the device; a twelfth of that from the host."""

    @staticmethod
    def tiny() -> "Sizes":
        """Return sizes to see that everything runs."""
        return Sizes(160, 32, 2, 100, (3,), (2, 8), 12, 16, 90, 16, 1 << 12)


@dataclass(frozen=True)
class Variant:
    """A way to compute something."""

    name: str
    call: Call
    exact: Call | None = None
    """The same without random numbers, of which the error is taken; None where `call` draws none."""


def ceilings(clock: Clock, sizes: Sizes) -> Rows:
    """Yield what the device can do at best."""
    device, kind = clock.device, _kind(clock)
    source = torch.empty(sizes.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    row = clock.row("ceilings", "copy on the device", lambda: target.copy_(source))
    yield replace(row, figures={"TB/s, read and written": 2 * sizes.copied / row.seconds / 1e12})
    square = torch.randn(sizes.square, sizes.square, device=device, dtype=kind)
    row = clock.row("ceilings", f"{sizes.square}^3", lambda: square @ square)
    yield replace(row, figures={"TFLOP/s": 2 * sizes.square**3 / row.seconds / 1e12})
    host = torch.empty(sizes.copied // 12, dtype=torch.uint8, pin_memory=clock.on_gpu)
    row = clock.row("ceilings", "host to device", lambda: target[: len(host)].copy_(host, non_blocking=True))
    yield replace(row, figures={"GB/s": len(host) / row.seconds / 1e9})
    one = torch.zeros(1, device=device)
    yield clock.row("ceilings", "empty launch", lambda: one.add_(1))


def gemm(clock: Clock, sizes: Sizes) -> Rows:
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


def norm(clock: Clock, sizes: Sizes) -> Rows:
    """Yield dropout, residual and layer norm, forward and backward: used by one operation, and by two as in a layer."""
    shapes = [(sizes.slots, sizes.width)] * 2 + [(sizes.width,)] * 3
    tensors = [torch.randn(shape, device=clock.device, dtype=_kind(clock)).requires_grad_() for shape in shapes]

    def form(kernel: str, dropout: float) -> Call:
        return lambda x, added, weight, bias, more: residual_norm(x, added, weight, bias, EPS, dropout, kernel, more)

    plain = form("torch", 0.0)
    variants = [Variant("torch", form("torch", 0.1), plain), Variant("torch, no dropout", plain)]
    if clock.on_gpu:
        compiled, triton = torch.compile(plain), form("triton", 0.0)
        variants += [
            Variant("compiled", torch.compile(form("torch", 0.1)), compiled),
            Variant("compiled, no dropout", compiled),
        ]
        variants += [Variant("triton", form("triton", 0.1), triton), Variant("triton, no dropout", triton)]
    yield from _forms("norm", clock, tensors, variants, plain)
    yield from _forms("norm, used twice", clock, tensors, _used_twice(clock, variants), _twice(plain))


def _twice(form: Call) -> Call:
    """Return a form whose result two operations use, so that autograd adds their gradients."""

    def call(*tensors: Tensor) -> Twice:
        return apart(form(*tensors))

    return call


def _used_twice(clock: Clock, variants: list[Variant]) -> list[Variant]:
    """Return the variants of a norm that is used twice, and on a GPU the kernel that adds the two gradients itself."""
    found = [replace(one, call=_twice(one.call), exact=_twice(one.exact or one.call)) for one in variants]
    if clock.on_gpu:
        from m3p.kernels.residual_norm_triton import residual_norm_triton

        def form(dropout: float) -> Call:
            return lambda x, added, weight, bias, more: residual_norm_triton(x, added, weight, bias, EPS, dropout, more)

        found.append(Variant("triton, gradients added inside", form(0.1), form(0.0)))
    return [one for one in found if not one.name.endswith("no dropout")]


def gelu(clock: Clock, sizes: Sizes) -> Rows:
    """Yield both halves of feed-forward, forward and backward. The first linear layer adds its bias where GELU does not."""
    wide, kernels = 4 * sizes.width, ("torch", "triton", "quack")
    shapes = [(sizes.slots, sizes.width), (wide, sizes.width), (wide,), (sizes.width, wide), (sizes.width,)]
    tensors = [torch.randn(shape, device=clock.device, dtype=_kind(clock)) for shape in shapes]
    for weight in (tensors[1], tensors[3]):
        weight /= weight.shape[1] ** 0.5
    tensors = [tensor.requires_grad_() for tensor in tensors]

    def plain(x: Tensor, up: Tensor, bias: Tensor, down: Tensor, last: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, up, bias)), down, last)

    def triton(x: Tensor, up: Tensor, bias: Tensor, down: Tensor, last: Tensor) -> Tensor:
        return F.linear(bias_gelu(F.linear(x, up), bias, "triton"), down, last)

    missing = _missing("gelu", kernels, clock, sizes)
    yield from missing.values()
    forms = dict(zip(kernels, (plain, triton, feed_forward_quack), strict=True))
    variants = [Variant(name, form) for name, form in forms.items() if name not in missing]
    if clock.on_gpu:
        variants.insert(1, Variant("compiled", torch.compile(plain)))
    yield from _forms("gelu", clock, tensors, variants, plain)


def attention(clock: Clock, sizes: Sizes) -> Rows:
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

    names, grouped = ("varlen", "triton", "flash_attn", "fa4"), form(ordered, "grouped")
    missing = _missing("attention", names, clock, sizes)
    yield from missing.values()
    # Numbers are random, so in another order other sequences are as good; the error is of the one that `grouped` has.
    there = {name: form(ordered, name) for name in names if name not in missing}
    variants = [Variant(name, form(lengths, name), exact) for name, exact in there.items()]
    if "varlen" in there:
        variants.insert(1, Variant("varlen, sorted by length", there["varlen"]))
    yield from _forms("attention", clock, [qkv], [*variants, Variant("grouped", grouped)], grouped)
    # What flash attention's backward adds the gradient of the queries in: 128 rows more for every sequence.
    rows = len(qkv) + 128 * len(lengths)
    yield attempt("attention", SUMS, lambda: clock.row("attention", SUMS, lambda: _filled(clock, rows, sizes.width)))


def _filled(clock: Clock, rows: int, width: int) -> Tensor:
    return torch.zeros(rows, width, device=clock.device).to(_kind(clock))


def _missing(field: str, names: tuple[str, ...], clock: Clock, sizes: Sizes) -> dict[str, Missing]:
    """Return which implementations of an operation cannot run here, each with its reason, by name."""
    situation = Situation(
        clock.device.type,
        _kind(clock),
        head_size=sizes.width // sizes.heads,
        widths=(sizes.width, 4 * sizes.width),
    )
    reasons = {name: CANDIDATES[field][name][1](situation) for name in names}
    return {name: Missing(field, name, reason) for name, reason in reasons.items() if reason}


def head(clock: Clock, sizes: Sizes) -> Rows:
    """Yield the word loss with its gradients: as it is, with other chunks, and with the vocabulary padded."""
    kind, device = _kind(clock), clock.device
    weight = (torch.randn(sizes.words, sizes.width, device=device, dtype=kind) * 0.02).requires_grad_()
    bias = torch.zeros(sizes.words, device=device, dtype=kind, requires_grad=True)
    for count in sizes.masked:
        rows = torch.randn(count, sizes.width, device=device, dtype=kind, requires_grad=True)
        labels = torch.randint(sizes.words, (count,), device=device)
        few, part = slice(0, min(count, 64)), f"head, {count} words"
        wide = [tensor.detach().float().requires_grad_() for tensor in (rows[few], weight, bias)]
        wanted = _outcome(lambda r, w, b, of=labels[few]: linear_cross_entropy(r, w, b, of), wide)
        for name, call in _heads(labels, sizes):
            yield attempt(
                part, name, partial(_measure_head, clock, part, name, call, (rows, weight, bias), few, wanted)
            )


def _measure_head(
    clock: Clock, part: str, name: str, call: Call, tensors: tuple[Tensor, ...], few: slice, wanted: list[Tensor]
) -> Row:
    """Time a variant of the word loss on all rows; `wanted` are loss and gradients of the `few` first ones in float32."""
    rows, *others = tensors
    found = _outcome(lambda *three: call(*three, few), [rows.detach()[few].requires_grad_(), *others])
    whole = _both(lambda *three: call(*three, slice(None)), [rows, *others])
    return clock.row(part, name, whole, relative_error(found, wanted))


def _heads(labels: Tensor, sizes: Sizes) -> Iterator[tuple[str, Call]]:
    """Yield the name of each variant of the word loss, and the call: rows, weight, bias, and which of the rows count."""

    def plain(rows: Tensor, weight: Tensor, bias: Tensor, few: slice, chunk: int | None = None) -> Tensor:
        return linear_cross_entropy(rows, weight, bias, labels[few], chunk_rows=chunk)

    def padded(rows: Tensor, weight: Tensor, bias: Tensor, few: slice, unit: int) -> Tensor:
        more = -len(weight) % unit
        # A word that never occurs: exp(-inf) is 0, and so is its gradient.
        weight, bias = F.pad(weight, (0, 0, 0, more)), F.pad(bias, (0, more), value=-torch.inf)
        return linear_cross_entropy(rows, weight, bias, labels[few])

    yield "as it is", plain
    for chunk in sizes.chunks:
        yield f"chunks of {chunk}", partial(plain, chunk=chunk)
    for unit in UNITS:
        yield f"vocabulary padded to {unit}", partial(padded, unit=unit)
    yield "again", plain


def word_gradient(clock: Clock, sizes: Sizes) -> Rows:
    """Yield the word weight's gradient of a chunk, added to its float32 sum: slice by slice, or by the multiplication itself."""
    kind, device, chunk = _kind(clock), clock.device, sizes.chunks[0]
    gradient = torch.randn(chunk, sizes.words, device=device, dtype=kind) * 1e-3
    rows = torch.randn(chunk, sizes.width, device=device, dtype=kind)
    total = torch.zeros(sizes.words, sizes.width, device=device)
    wanted = gradient.float().T @ rows.float()

    def slices() -> Tensor:
        for word in range(0, len(total), SLICE):
            total[word : word + SLICE].add_(gradient[:, word : word + SLICE].T @ rows)
        return total

    def at_once() -> Tensor:
        if not clock.on_gpu:  # a CPU multiplies float32 here, and has no other sum
            return total.addmm_(gradient.T, rows)
        return torch.addmm(total, gradient.T, rows, out_dtype=torch.float32, out=total)

    for name, call in {"slices, as it is": slices, "float32 sums by addmm": at_once, "again": slices}.items():

        def measure(call: Callable[[], Tensor] = call, name: str = name) -> Row:
            total.zero_()
            return clock.row("word_gradient", name, call, relative_error([call()], [wanted]))

        yield attempt("word_gradient", name, measure)


def gather(clock: Clock, sizes: Sizes) -> Rows:
    """Yield the gathering of slots from words and regions, of which some are shown twice, and of a head's rows: both ways."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(sizes.rows, (sizes.slots,), generator=generator).to(clock.device)
    slots = torch.randperm(sizes.slots, generator=generator)[: sizes.masked[-1]].to(clock.device)
    for part, length, places in (("gather, slots", sizes.rows, order), ("gather, a head's rows", sizes.slots, slots)):
        shape = (length, sizes.width)
        tensors = [torch.randn(shape, device=clock.device, dtype=_kind(clock)).requires_grad_()]

        def index(x: Tensor, places: Tensor = places) -> Tensor:
            return x[places]

        def select(x: Tensor, places: Tensor = places) -> Tensor:
            return x.index_select(0, places)

        def embed(x: Tensor, places: Tensor = places) -> Tensor:
            return F.embedding(places, x)

        variants = [Variant("index, as it is", index), Variant("index_select", select), Variant("embedding", embed)]
        yield from _forms(part, clock, tensors, variants, index)


def wire(clock: Clock, sizes: Sizes) -> Rows:
    """Yield the features of a pair turn on their way from pinned memory to the embedder's number format."""
    features = F.normalize(torch.randn(sizes.regions, sizes.feature), dim=1)
    kinds = {"float32, as it is": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    for name, kind in kinds.items():

        def measure(name: str = name, kind: torch.dtype = kind) -> Row:
            sent = features.to(kind)
            sent = sent.pin_memory() if clock.on_gpu else sent

            def call() -> Tensor:
                return sent.to(clock.device, non_blocking=True).to(_kind(clock))

            error = relative_error([call().cpu()], [features.to(_kind(clock))])
            row = clock.row("wire", name, call, error)
            return replace(row, figures={"GB/s": sent.nbytes / row.seconds / 1e9})

        yield attempt("wire", name, measure)


def _forms(part: str, clock: Clock, tensors: list[Tensor], variants: list[Variant], reference: Call) -> Rows:
    """Yield forward and backward of each variant, the first of them twice, with their errors to `reference` in float32."""
    wanted = _outcome(reference, [tensor.detach().float().requires_grad_() for tensor in tensors])
    for one in [*variants, replace(variants[0], name="again")]:

        def measure(one: Variant = one) -> Row:
            error = relative_error(_outcome(one.exact or one.call, tensors), wanted)
            return clock.row(part, one.name, _both(one.call, tensors), error)

        yield attempt(part, one.name, measure)


def _outcome(call: Call, tensors: list[Tensor]) -> list[Tensor]:
    """Return the results and the gradients of a form."""
    results = _results(call, tensors)
    generator = torch.Generator(results[0].device).manual_seed(0)
    upstream = [torch.randn(one.shape, generator=generator, device=one.device).to(one.dtype) for one in results]
    return [*(one.detach() for one in results), *torch.autograd.grad(results, tensors, upstream)]


def _both(call: Call, tensors: list[Tensor]) -> Callable[[], object]:
    """Return forward and backward of a form, with an upstream gradient of ones."""
    ones = [torch.ones_like(one) for one in _results(call, tensors)]
    return lambda: torch.autograd.grad(_results(call, tensors), tensors, ones)


def _results(call: Call, tensors: list[Tensor]) -> list[Tensor]:
    out = call(*tensors)
    return [out] if isinstance(out, Tensor) else list(out)


def _kind(clock: Clock) -> torch.dtype:
    return torch.bfloat16 if clock.on_gpu else torch.float32


PARTS: dict[str, Callable[[Clock, Sizes], Rows]] = {
    "ceilings": ceilings, "norm": norm, "head": head, "word_gradient": word_gradient, "attention": attention,
    "gelu": gelu, "gather": gather, "wire": wire, "gemm": gemm,
}  # fmt: skip
