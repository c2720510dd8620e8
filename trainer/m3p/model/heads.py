"""One head a task. Each reads rows of the encoder's output that the batch's targets name.

Every head is called in every forward, with a row of zeros where a micro-batch asks nothing of it (`model/m3p.py` says why).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3p.kernels.cross_entropy import linear_cross_entropy
from m3p.model.attention import Layout

Targets = dict[str, Tensor]


class Head(nn.Module):
    """What all heads share: `rows` picks what is read, `forward` computes on it.

    A head whose output would be too large to keep takes `labels` too, and returns the sum of its losses instead.
    """

    takes_labels = False

    def rows(self, hidden: Tensor, layout: Layout, targets: Targets) -> Tensor:
        """Pick the rows to read: `hidden` [T, width] -> [N, width]. By default, the slots that the targets name."""
        return hidden[targets["slots"]]


class WordHead(Head):
    """Masked words (RoBERTa's head, decoder tied to the word embedding): [M, width] -> the sum of their losses, or logits."""

    takes_labels = True

    def __init__(self, words: nn.Embedding, eps: float) -> None:
        super().__init__()
        vocabulary, width = words.weight.shape
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        # Registered here too, so that ZeRO-3 gathers the shared weight when this head runs.
        self.weight = words.weight
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.kernel: str | None = None

    def forward(self, rows: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the summed cross-entropy against `labels` [M], or without them logits [M, vocabulary]."""
        x = self.norm(F.gelu(self.dense(rows)))
        if labels is None:
            return F.linear(x, self.weight, self.bias)
        return linear_cross_entropy(x, self.weight, self.bias, labels, kernel=self.kernel)


class RegionHead(Head):
    """Masked regions (M3P's MC-MRM): [K, width] -> feature [K, F] and class logits [K, C] (C = 0 where there are none)."""

    def __init__(self, width: int, feature_size: int, classes: int, eps: float) -> None:
        super().__init__()
        self.feature = nn.Linear(width, feature_size)
        self.classes = None if classes == 0 else _classifier(width, classes, eps)

    def forward(self, rows: Tensor) -> Tensor:
        """Return [K, F + C]: feature and class logits side by side."""
        feature = self.feature(rows)
        return feature if self.classes is None else torch.cat([feature, self.classes(rows)], -1)


class MatchingHead(Head):
    """Does the picture belong to the caption? BERT's pooler at `<s>`, then one logit: [N, width] -> [N]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)

    def rows(self, hidden: Tensor, layout: Layout, targets: Targets) -> Tensor:
        """`<s>` of each sequence that the targets name."""
        return hidden[layout.starts[targets["sequences"]]]

    def forward(self, rows: Tensor) -> Tensor:
        """Logits."""
        return self.score(torch.tanh(self.pooler(rows))).squeeze(-1)


class ContrastiveHead(Head):
    """Projects text and picture into one space: [2n, width] (texts, then pictures) -> [2n, projection] of unit length.

    The texts' rows carry the inverse temperature as a factor, so that their dot products with the pictures' rows are the
    logits, and the temperature gets its gradient through the features like every other parameter.
    """

    def __init__(self, width: int, projection: int, pooling: str, temperature: float, learn_temperature: bool) -> None:
        super().__init__()
        self.pooling = pooling
        self.views, self.size = 2, projection  # features of a pair: its text's and its picture's
        self.text = nn.Linear(width, projection, bias=False)
        self.image = nn.Linear(width, projection, bias=False)
        # Of full precision and one dimension, as ZeRO wants its parameters.
        self.log_scale = nn.Parameter(torch.full((1,), -math.log(temperature)), requires_grad=learn_temperature)

    def rows(self, hidden: Tensor, layout: Layout, targets: Targets) -> Tensor:
        """Pool the texts, then the pictures, that the targets name."""
        return torch.cat(
            [
                self.pool(hidden, layout, targets["text_sequences"], 0),
                self.pool(hidden, layout, targets["image_sequences"], 1),
            ]
        )

    def pool(self, hidden: Tensor, layout: Layout, sequences: Tensor, skip: int) -> Tensor:
        """Pool `sequences` [N]: their `<s>`, or the mean of their slots without the first `skip`. -> [N, width]."""
        if self.pooling == "first":
            return hidden[layout.starts[sequences]]
        return mean_of_sequences(hidden, layout, sequences, skip)

    def embed_text(self, pooled: Tensor) -> Tensor:
        """[N, width] -> [N, projection] of unit length."""
        return F.normalize(self.text(pooled).float(), dim=-1, eps=1e-6)

    def embed_image(self, pooled: Tensor) -> Tensor:
        """[N, width] -> [N, projection] of unit length."""
        return F.normalize(self.image(pooled).float(), dim=-1, eps=1e-6)

    def forward(self, rows: Tensor) -> Tensor:
        """Of an even number of rows; a single one (the dummy) counts as a text and as a picture."""
        texts, images = rows.tensor_split([len(rows) // 2]) if len(rows) > 1 else (rows, rows)
        # CLIP's ceiling (arXiv 2103.00020). Beyond it the gradient passes as if there were none, so that it can come back.
        held = self.log_scale.detach().clamp(max=math.log(100.0)) - self.log_scale.detach()
        scale = (self.log_scale + held).exp()
        return torch.cat([self.embed_text(texts) * scale, self.embed_image(images)])


def mean_of_sequences(hidden: Tensor, layout: Layout, sequences: Tensor, skip: int) -> Tensor:
    """Mean of the slots of each of `sequences` [N], without its first `skip` (a lone picture's `<s>`): -> [N, width]."""
    values = hidden.float()
    for place in range(skip):
        values = values.index_fill(0, layout.starts[sequences] + place, 0.0)
    # Over all sequences, since the number of slots of some would have to be waited for.
    every = torch.arange(len(layout.lengths), device=hidden.device)
    owner = torch.repeat_interleave(every, layout.lengths, output_size=len(hidden))
    total = values.new_zeros(len(every), hidden.shape[-1]).index_add(0, owner, values)[sequences]
    return (total / (layout.lengths[sequences, None] - skip)).to(hidden.dtype)


def _classifier(width: int, classes: int, eps: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=eps), nn.Linear(width, classes))
