"""XLM-R's encoder (arXiv 1911.02116, RoBERTa's layers) on a packed axis: T slots of `width`, no padding.

Post-layer-norm as in `transformers.XLMRobertaModel`, whose hidden states it reproduces on the same weights.
"""

from collections.abc import Callable
from types import MethodType

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m3p.kernels.bias_gelu import bias_gelu
from m3p.kernels.feed_forward_quack import feed_forward_quack
from m3p.kernels.residual_norm import Twice, apart, residual_norm
from m3p.model.attention import Layout, attend

PAD = 1
"""XLM-R's id of `<pad>`; its positions count from PAD + 1."""


class EncoderShape(BaseModel):
    """The sizes of an encoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int = Field(12, ge=1, le=1000, description="Transformer layers.")
    width: int = Field(768, ge=8, le=1 << 16, description="Hidden size of a slot.")
    heads: int = Field(12, ge=1, le=1 << 12, description="Attention heads; they divide the width.")
    feed_forward: int = Field(3072, ge=8, le=1 << 20, description="Hidden size of the feed-forward part.")
    positions: int = Field(514, ge=4, le=1 << 20, description="Rows of the position table: longest text in tokens + 2.")
    layer_norm_eps: float = Field(1e-5, gt=0, description="Epsilon of the layer norms.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "EncoderShape":
        if self.width % self.heads:
            raise ValueError(
                f"heads = {self.heads} does not divide width = {self.width}: choose a divisor of the width"
            )
        return self


class TextEmbedder(nn.Module):
    """Word + position + type embedding, layer norm, dropout: [W] ids and places -> [W, width]."""

    def __init__(self, shape: EncoderShape, vocabulary: int, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, shape.width, padding_idx=PAD)
        self.positions = nn.Embedding(shape.positions, shape.width, padding_idx=PAD)
        self.types = nn.Embedding(1, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=shape.layer_norm_eps)
        self.dropout = dropout

    def forward(self, token_ids: Tensor, places: Tensor) -> Tensor:
        """`places` [W] count from 0 inside each sequence."""
        x = self.words(token_ids) + self.positions(places + PAD + 1) + self.types(torch.zeros_like(token_ids))
        return F.dropout(self.norm(x), self.dropout, self.training)


Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Returns what a linear layer makes of its input, by its weight and, if there is one, its bias."""


class ResidualNorm(nn.LayerNorm):
    """Layer norm of a slot and of what a part of the layer adds to it, with dropout. A module, so that ZeRO-3 gathers it."""

    def __init__(self, width: int, eps: float, dropout: float) -> None:
        super().__init__(width, eps=eps)
        self.dropout, self.kernel = dropout, "torch"

    def forward(self, x: Tensor, added: Tensor) -> Tensor:  # type: ignore[override]
        """[T, width] twice -> [T, width]."""
        return residual_norm(x, added, self.weight, self.bias, self.eps, self._rate, self.kernel)

    @property
    def _rate(self) -> float:
        return self.dropout if self.training else 0.0

    def add(self, x: Tensor, linear: nn.Linear, hidden: Tensor, multiply: Multiply | None = None) -> Tensor | Twice:
        """Return the norm of `x` and of what `linear` makes of `hidden`, for what follows and as its residual.

        Triton's kernel adds the bias, and sums its gradient and those of the two uses; without it the norm is a plain tensor.
        `multiply` computes `linear` in its place: of `hidden`, weight and bias, or None where Triton's kernel adds it.
        """
        if self.kernel == "triton":
            from m3p.kernels.residual_norm_triton import residual_norm_triton

            added = (multiply or F.linear)(hidden, linear.weight, None)
            return residual_norm_triton(x, added, self.weight, self.bias, self.eps, self._rate, linear.bias)
        normed: Tensor = self(x, multiply(hidden, linear.weight, linear.bias) if multiply else linear(hidden))
        return normed


class Layer(nn.Module):
    """Attention and feed-forward, each followed by residual and layer norm: [T, width] -> [T, width]."""

    def __init__(self, shape: EncoderShape, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.attention_norm = ResidualNorm(shape.width, shape.layer_norm_eps, dropout)
        self.up = nn.Linear(shape.width, shape.feed_forward)
        self.down = nn.Linear(shape.feed_forward, shape.width)
        self.feed_forward_norm = ResidualNorm(shape.width, shape.layer_norm_eps, dropout)
        self.attention_dropout = attention_dropout
        self.gelu = "torch"
        """Who computes GELU (kernels/choice.py)."""

    def forward(self, x: Tensor | Twice, layout: Layout) -> Tensor | Twice:
        """`layout` says which slots are one sequence."""
        x, residual = apart(x)
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        attended = attend(qkv, layout, self.attention_dropout if self.training else 0.0).flatten(1)
        return self.after_attention(residual, attended)

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor | Twice:
        """Do what follows attention, which mixes no slots: [T, width] twice -> [T, width]."""
        x, residual = apart(self.attention_norm.add(x, self.out, attended))
        if self.gelu == "quack":
            return self.feed_forward_norm.add(residual, self.down, x, self._feed_forward)
        return self.feed_forward_norm.add(residual, self.down, self._widen(x))

    def _feed_forward(self, x: Tensor, down: Tensor, bias: Tensor | None) -> Tensor:
        """Do both halves of feed-forward by QuACK: [T, width] -> [T, width]; `down` and `bias` are of the second one."""
        return feed_forward_quack(x, self.up.weight, self.up.bias, down, bias)

    def _widen(self, x: Tensor) -> Tensor:
        """Do the first half of feed-forward: [T, width] -> [T, feed_forward]. Triton's kernel adds the bias."""
        if self.gelu == "triton":
            return bias_gelu(F.linear(x, self.up.weight), self.up.bias, "triton")
        return F.gelu(self.up(x))

    def compile_rest(self, backend: str = "inductor") -> None:
        """Compile what follows attention, once for all lengths and, since they are alike, for all layers."""
        rest = torch.compile(Layer.after_attention, backend=backend)

        def run(layer: "Layer", x: Tensor, attended: Tensor) -> Tensor | Twice:
            for tensor in (x, attended):  # their slots alone change; `dynamic=True` would take dropout for dynamic, too
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return rest(layer, x, attended)

        self.after_attention = MethodType(run, self)  # type: ignore[method-assign]


class Encoder(nn.Module):
    """A stack of layers over packed sequences."""

    def __init__(self, shape: EncoderShape, dropout: float, attention_dropout: float, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.head_size, self.attention_dropout = shape.width // shape.heads, attention_dropout
        self.widths = shape.width, shape.feed_forward
        self.layers = nn.ModuleList(Layer(shape, dropout, attention_dropout) for _ in range(shape.layers))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[T, width] -> [T, width]."""
        recompute = self.recompute and torch.is_grad_enabled()
        states: Tensor | Twice = layout.arrange(x, self.head_size)
        for layer in self.layers:
            states = checkpoint(layer, states, layout, use_reentrant=False) if recompute else layer(states, layout)
        return layout.restore(apart(states).value)
