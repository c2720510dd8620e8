"""Memory of a frozen text encoder: what it says of a text never changes, so each text is encoded once."""

from collections.abc import Callable

import torch
from torch import Tensor

LIMIT = 1 << 30
"""Bytes of states that are kept; what comes later is encoded every time."""


class TextMemory:
    """Keeps the states of texts by their tokens.

    A text is encoded alone, so that its states do not depend on which others are beside it the first time: a run that is
    resumed, whose memory is empty, computes the same numbers.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._bytes = 0

    def states(self, token_ids: Tensor, lengths: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the states of texts that lie end to end in `token_ids` [W], of `lengths` [S]: -> [W, width].

        `encode` turns the tokens [L] of one text into its states [L, width].
        """
        return torch.cat([self._of(tokens, encode) for tokens in torch.split(token_ids, lengths.tolist())])

    def _of(self, tokens: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        key = tuple(tokens.tolist())
        if key in self._kept:
            return self._kept[key]
        states = encode(tokens)
        if self._bytes + states.nbytes <= LIMIT:
            self._kept[key] = states
            self._bytes += states.nbytes
        return states
