"""Masked words: BERT's masked language model (arXiv 1810.04805), 15 %, 80/10/10. xMLM on text, MC-MLM on pairs."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from m3p.data.tokenizer import BOS, EOS, Tokenizer
from m3p.kernels.cross_entropy import CHUNK_BYTES, linear_cross_entropy, weighted_cross_entropy
from m3p.keys import choose, hashes, splitmix64, uniform
from m3p.model.config import ModelConfig
from m3p.model.flops import NetworkSizes
from m3p.model.heads import Head
from m3p.objectives.tasks.forms import Form, PackedPairs
from m3p.objectives.tasks.task import Marks, Targets, Task
from m3p.packing import Packer

Ids = NDArray[np.int64]

FULL = 4
"""Bytes of a float32 number."""


class MaskedWords(Task):
    """Cross-entropy over the vocabulary, at the masked slots alone."""

    name = "masked_words"
    forms = frozenset({Form.JOINT})
    masks_words = True

    def head(self, config: ModelConfig, sizes: NetworkSizes, words: nn.Embedding) -> "WordHead":
        """Return RoBERTa's head, its decoder tied to the word table."""
        return WordHead(words, sizes.shape.layer_norm_eps)

    def ask(self, packer: Packer, pairs: PackedPairs) -> None:
        """Ask for the masked words of joint pairs."""
        assert pairs.joint is not None
        if len(pairs.joint.words):
            ask_words(packer, pairs.joint.words, pairs.joint.labels)

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """`output` is the sum already: the head takes it with the labels, so that logits of all masked slots never exist."""
        return output

    def flops(self, sizes: NetworkSizes) -> float:
        """A masked word: dense layer and decoder, 2 w^2 + 2 w vocabulary."""
        width = sizes.shape.width
        return 2 * width**2 + 2 * width * sizes.vocabulary

    def terms(self, masked_words: float, masked_regions: float) -> float:
        """The masked words."""
        return masked_words

    def memory(self, terms: float, sizes: NetworkSizes, element: int, device: str) -> float:
        """A chunk of logits, and the word weight's gradient in float32 and in its own type."""
        if not terms:
            return 0.0
        chunk = min(CHUNK_BYTES[device], FULL * terms * sizes.vocabulary)
        wide = FULL + (element if element < FULL else 0)
        return chunk + wide * sizes.vocabulary * sizes.shape.width

    def show(self, targets: Targets) -> Marks:
        """Mark the masked words, with what they truly are."""
        return Marks(words=dict(zip(targets["slots"].tolist(), targets["labels"].tolist(), strict=True)))


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

    def use(self, kernel: str) -> None:
        """Compute the loss with this implementation: "triton" or "torch"."""
        self.kernel = kernel

    def forward(
        self, rows: Tensor, labels: Tensor | None = None, factors: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the summed cross-entropy against `labels` [M], or without them logits [M, vocabulary].

        With `factors` [M]: the sum of the rows' cross-entropies times these, and the cross-entropies [M] without gradient.
        """
        x = self.norm(F.gelu(self.dense(rows)))
        if labels is None:
            return F.linear(x, self.weight, self.bias)
        if factors is not None:
            return weighted_cross_entropy(x, self.weight, self.bias, labels, factors, kernel=self.kernel)
        return linear_cross_entropy(x, self.weight, self.bias, labels, kernel=self.kernel)


def mask_words(
    tokens: Ids, lengths: Ids, keys: NDArray[np.uint64], rate: float, tokenizer: Tokenizer
) -> tuple[Ids, Ids]:
    """Choose each piece with chance `rate`, at least one a text: -> (tokens [W] with the chosen ones hidden, their places).

    Texts lie end to end in `tokens` [W], of `lengths` [N]; the choices of each are drawn by its key [N]. Of the chosen, 80 %
    become `<mask>`, 10 % a random piece, 10 % stay. `<s>` and `</s>` are never chosen, those between segments included.

    All texts at once: a generator for each, and calls of numpy for its thirty tokens, would cost more than all else that is
    done to it.
    """
    ends = lengths.cumsum()
    starts = ends - lengths
    numbers = hashes(np.repeat(keys, lengths), np.arange(len(tokens)) - np.repeat(starts, lengths))
    coins = uniform(numbers)
    coins[(tokens == BOS) | (tokens == EOS)] = 1  # no text is tokenised to these: they stand around its segments
    places = choose(coins, lengths, rate)
    fate = splitmix64(numbers[places])
    return _hide(tokens, places, uniform(fate), uniform(splitmix64(fate)), tokenizer), places


def _hide(
    tokens: Ids, places: Ids, fate: NDArray[np.float64], replacement: NDArray[np.float64], tokenizer: Tokenizer
) -> Ids:
    """Return `tokens` with those at `places` [K] hidden; `fate` and `replacement` [K] in 0..1 say how."""
    random = tokenizer.first_piece + (replacement * (tokenizer.mask - tokenizer.first_piece)).astype(np.int64)
    hidden = tokens.copy()
    hidden[places] = np.where(fate < 0.8, tokenizer.mask, np.where(fate < 0.9, random, tokens[places]))
    return hidden


def ask_words(packer: Packer, slots: Ids, labels: Ids) -> None:
    """Ask for the words at `slots` [K]; `labels` [K] are the true ids."""
    packer.target(MaskedWords.name, slots=slots, labels=labels)
