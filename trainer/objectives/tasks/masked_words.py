"""Masked words: BERT's masked language model (arXiv 1810.04805), 15 %, 80/10/10. xMLM on text, MC-MLM on pairs."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer.batch import Packer
from trainer.data.tokenizer import Tokenizer
from trainer.objectives.tasks.task import Targets

Ids = NDArray[np.int64]


class MaskedWords:
    """Cross-entropy over the vocabulary, at the masked slots alone."""

    name = "masked_words"
    over_turn = False

    def count(self, targets: Targets) -> int:
        """Masked slots."""
        return len(targets["slots"])

    def loss(self, output: Tensor, targets: Targets) -> Tensor:
        """`output` is the sum already: the head takes it with the labels, so that logits of all masked slots never exist."""
        return output


def mask_words(tokens: Ids, rng: np.random.Generator, rate: float, tokenizer: Tokenizer) -> tuple[Ids, Ids]:
    """Choose each piece with chance `rate`, at least one: -> (tokens with the chosen ones hidden, their places).

    Of the chosen, 80 % become `<mask>`, 10 % a random piece, 10 % stay. `<s>` and `</s>` are never chosen.
    """
    pieces = len(tokens) - 2
    if pieces < 1:
        return tokens, np.zeros(0, np.int64)
    # One draw for everything: calls of numpy are what this costs.
    coin, fate, replacement = rng.random((3, pieces))
    chosen = (coin < rate).nonzero()[0]
    if not len(chosen):
        chosen = coin.argmin(keepdims=True)
    fate = fate[chosen]
    random = tokenizer.first_piece + (replacement[chosen] * (tokenizer.mask - tokenizer.first_piece)).astype(np.int64)
    chosen += 1  # behind `<s>`
    hidden = tokens.copy()
    hidden[chosen] = np.where(fate < 0.8, tokenizer.mask, np.where(fate < 0.9, random, tokens[chosen]))
    return hidden, chosen


def ask_words(packer: Packer, first: int, places: Ids, tokens: Ids) -> None:
    """Ask for the words at `places` of the sequence whose first slot is `first`; `tokens` are the true ids."""
    packer.target(MaskedWords.name, slots=first + places, labels=tokens[places])
