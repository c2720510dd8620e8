"""Masked words: BERT's masked language model (arXiv 1810.04805), 15 %, 80/10/10. xMLM on text, MC-MLM on pairs."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from m3p.data.tokenizer import Tokenizer
from m3p.keys import choose, hashes, splitmix64, uniform
from m3p.objectives.tasks.task import Targets
from m3p.packing import Packer

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


def mask_words(
    tokens: Ids, lengths: Ids, keys: NDArray[np.uint64], rate: float, tokenizer: Tokenizer
) -> tuple[Ids, Ids]:
    """Choose each piece with chance `rate`, at least one a text: -> (tokens [W] with the chosen ones hidden, their places).

    Texts lie end to end in `tokens` [W], of `lengths` [N]; the choices of each are drawn by its key [N]. Of the chosen, 80 %
    become `<mask>`, 10 % a random piece, 10 % stay. `<s>` and `</s>` are never chosen.

    All texts at once: a generator for each, and calls of numpy for its thirty tokens, would cost more than all else that is
    done to it.
    """
    ends = lengths.cumsum()
    starts = ends - lengths
    numbers = hashes(np.repeat(keys, lengths), np.arange(len(tokens)) - np.repeat(starts, lengths))
    coins = uniform(numbers)
    coins[starts] = coins[ends - 1] = 1  # of `<s>` and `</s>`
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
