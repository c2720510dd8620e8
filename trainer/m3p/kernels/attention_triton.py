"""Self-attention inside short packed sequences, in Triton: one program for each sequence and head, forward and backward.

After FlashAttention (arXiv 2307.08691), whose backward adds the gradient of the queries with atomics into a float32 tensor with
128 extra rows for every sequence. Here one program owns all slots of a sequence and head: nothing is added across programs, so
the outcome is the same each time, and the gradient is written once, in the layout of the tensor that holds queries, keys and
values.

Numbers that move for a slot of `width` numbers, where a sequence fits one block: forward 4 widths, backward 8. A longer sequence
reads its own slots again for each of its blocks. Sequences of any length are right, but long ones are slow: no program helps
another.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from m3p.kernels.first_order import first_order
from m3p.kernels.launch import on_gpu_of
from m3p.kernels.obstacles import HEAD_SIZES

FLOAT32_PRODUCTS = tl.constexpr("ieee" if torch.version.hip else "tf32x3")
"""How float32 is multiplied: as three parts of TF32, which lose next to nothing; AMD's GPUs have no such product."""


@triton.jit
def product(a, b):  # type: ignore[no-untyped-def]
    """Return the matrix product of two tiles in float32."""
    if a.dtype == tl.float32:
        return tl.dot(a, b, input_precision=FLOAT32_PRODUCTS)
    return tl.dot(a, b)


@triton.jit  # type: ignore[untyped-decorator]
def load_tile(base, first, length, stride, BLOCK: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Return the slots from `first` on, [BLOCK, SIZE], with zeros from `length` on; slots lie `stride` numbers apart."""
    slots = first + tl.arange(0, BLOCK)
    places = slots[:, None] * stride + tl.arange(0, SIZE)[None, :]
    return tl.load(base + places, (slots < length)[:, None], other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def store_tile(base, tile, first, length, stride, BLOCK: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Write `tile` where `load_tile` reads; rows from `length` on are left out."""
    slots = first + tl.arange(0, BLOCK)
    places = slots[:, None] * stride + tl.arange(0, SIZE)[None, :]
    tl.store(base + places, tile, (slots < length)[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def load_rows(out, upstream, log_sums, first, length, stride, BLOCK: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Return what the backward needs of the queries from `first` on, besides themselves.

    These are the gradient of their outputs [BLOCK, SIZE], the logarithm of each query's sum of exponentials [BLOCK], and the sum
    of its output times gradient [BLOCK].
    """
    slots = first + tl.arange(0, BLOCK)
    dout = load_tile(upstream, first, length, stride, BLOCK, SIZE)
    o = load_tile(out, first, length, stride, BLOCK, SIZE)
    log_sum = tl.load(log_sums + slots, slots < length, other=0.0)
    return dout, log_sum, tl.sum(o.to(tl.float32) * dout.to(tl.float32), 1)


@triton.jit  # type: ignore[untyped-decorator]
def weights(q, k, v, dout, log_sum, along, first_key, length, scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Return the attention weights of a tile of queries and keys, and the gradients of their scores, both [BLOCK, BLOCK].

    `along` [BLOCK] is output times gradient, summed. Keys from `length` on get zeros; for queries from there on `dout` is zero.
    """
    real = (first_key + tl.arange(0, BLOCK) < length)[None, :]
    p = tl.where(real, tl.exp(product(q, tl.trans(k)) * scale - log_sum[:, None]), 0.0)
    ds = p * (product(dout, tl.trans(v)) - along[:, None]) * scale
    return p.to(q.dtype), ds.to(q.dtype)


@triton.jit(do_not_specialize=["total"], do_not_specialize_on_alignment=["starts", "lengths"])  # type: ignore[untyped-decorator]
def forward_kernel(  # type: ignore[no-untyped-def]
    qkv, starts, lengths, out, log_sums, total, heads, scale,
    BLOCK: tl.constexpr, SIZE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Attend within sequences `starts`, `lengths` [S] int64; `qkv` [total, 3, heads, SIZE], `out` [total, heads, SIZE].

    `log_sums` [heads, total] float32 are the logarithms of the sums of exponentials, for the backward. `scale` multiplies scores.
    """
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    start, length = tl.load(starts + sequence), tl.load(lengths + sequence).to(tl.int32)
    width = heads * SIZE
    qkv += start * 3 * width + head * SIZE
    out += start * width + head * SIZE
    log_sums += start + head.to(tl.int64) * total
    for first in range(0, length, BLOCK):
        q = load_tile(qkv, first, length, 3 * width, BLOCK, SIZE)
        largest = tl.full([BLOCK], -float("inf"), tl.float32)
        summed = tl.zeros([BLOCK], tl.float32)
        mixed = tl.zeros([BLOCK, SIZE], tl.float32)
        for other in range(0, length, BLOCK):
            k = load_tile(qkv + width, other, length, 3 * width, BLOCK, SIZE)
            v = load_tile(qkv + 2 * width, other, length, 3 * width, BLOCK, SIZE)
            real = (other + tl.arange(0, BLOCK) < length)[None, :]
            scores = tl.where(real, product(q, tl.trans(k)) * scale, -float("inf"))
            new = tl.maximum(largest, tl.max(scores, 1))
            p = tl.exp(scores - new[:, None])
            shrink = tl.exp(largest - new)
            summed = summed * shrink + tl.sum(p, 1)
            mixed = mixed * shrink[:, None] + product(p.to(v.dtype), v)
            largest = new
        store_tile(out, mixed / summed[:, None], first, length, width, BLOCK, SIZE)
        slots = first + tl.arange(0, BLOCK)
        tl.store(log_sums + slots, largest + tl.log(summed), slots < length)


@triton.jit(do_not_specialize=["total"], do_not_specialize_on_alignment=["starts", "lengths"])  # type: ignore[untyped-decorator]
def backward_kernel(  # type: ignore[no-untyped-def]
    upstream, qkv, out, log_sums, starts, lengths, grad_qkv, total, heads, scale,
    BLOCK: tl.constexpr, SIZE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """As in `forward_kernel`; `upstream` is the gradient of `out`, and `grad_qkv` that of `qkv`, in its layout."""
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    start, length = tl.load(starts + sequence), tl.load(lengths + sequence).to(tl.int32)
    width = heads * SIZE
    qkv += start * 3 * width + head * SIZE
    grad_qkv += start * 3 * width + head * SIZE
    out += start * width + head * SIZE
    upstream += start * width + head * SIZE
    log_sums += start + head.to(tl.int64) * total
    span = tl.cdiv(length, BLOCK) * BLOCK
    for first in range(0, length, BLOCK):
        # The block with itself: all that a sequence of one block needs.
        q = load_tile(qkv, first, length, 3 * width, BLOCK, SIZE)
        k = load_tile(qkv + width, first, length, 3 * width, BLOCK, SIZE)
        v = load_tile(qkv + 2 * width, first, length, 3 * width, BLOCK, SIZE)
        dout, log_sum, along = load_rows(out, upstream, log_sums, first, length, width, BLOCK, SIZE)
        p, ds = weights(q, k, v, dout, log_sum, along, first, length, scale, BLOCK)
        dq, dk, dv = product(ds, k), product(tl.trans(ds), q), product(tl.trans(p), dout)
        for ahead in range(BLOCK, span, BLOCK):
            other = (first + ahead) % span
            # Its queries with the other block's keys,
            k2 = load_tile(qkv + width, other, length, 3 * width, BLOCK, SIZE)
            v2 = load_tile(qkv + 2 * width, other, length, 3 * width, BLOCK, SIZE)
            p, ds = weights(q, k2, v2, dout, log_sum, along, other, length, scale, BLOCK)
            dq += product(ds, k2)
            # and the other block's queries with its keys.
            q2 = load_tile(qkv, other, length, 3 * width, BLOCK, SIZE)
            dout2, log_sum2, along2 = load_rows(out, upstream, log_sums, other, length, width, BLOCK, SIZE)
            p, ds = weights(q2, k, v, dout2, log_sum2, along2, first, length, scale, BLOCK)
            dk += product(tl.trans(ds), q2)
            dv += product(tl.trans(p), dout2)
        store_tile(grad_qkv, dq, first, length, 3 * width, BLOCK, SIZE)
        store_tile(grad_qkv + width, dk, first, length, 3 * width, BLOCK, SIZE)
        store_tile(grad_qkv + 2 * width, dv, first, length, 3 * width, BLOCK, SIZE)


def shape_of(size: int, kind: torch.dtype) -> dict[str, int]:
    """Return how the kernels are built for heads of `size` numbers of `kind`.

    With these blocks of slots the backward of 64 numbers in 16 bits fits into the registers of an H100; in float32 it does not.
    The loops are short, so no load runs ahead.
    """
    return {"BLOCK": 16 if kind == torch.float32 else 32, "SIZE": size, "num_warps": 4, "num_stages": 1}


def attention_triton(qkv: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Attend within each sequence: `qkv` [T, 3, heads, size], `starts` and `lengths` [S] int64 -> [T, heads, size]. No dropout.

    Sequence s is the slots from starts[s] on, lengths[s] of them; every slot belongs to one.
    """
    assert qkv.shape[3] in HEAD_SIZES, "kernels/obstacles.py refuses other sizes"
    out: Tensor = _Attention.apply(qkv.contiguous(), starts.contiguous(), lengths.contiguous())  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        total, _, heads, size = qkv.shape
        out = torch.empty_like(qkv[:, 0], memory_format=torch.contiguous_format)
        log_sums = torch.empty(heads, total, dtype=torch.float32, device=qkv.device)
        with on_gpu_of(qkv):
            forward_kernel[(len(starts) * heads,)](
                qkv, starts, lengths, out, log_sums, total, heads, size**-0.5, **shape_of(size, qkv.dtype)
            )
        ctx.save_for_backward(qkv, starts, lengths, out, log_sums)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        qkv, starts, lengths, out, log_sums = ctx.saved_tensors
        total, _, heads, size = qkv.shape
        grad_qkv = torch.empty_like(qkv)
        with on_gpu_of(qkv):
            backward_kernel[(len(starts) * heads,)](
                upstream.contiguous(), qkv, out, log_sums, starts, lengths, grad_qkv,
                total, heads, size**-0.5, **shape_of(size, qkv.dtype),
            )  # fmt: skip
        return grad_qkv, None, None
