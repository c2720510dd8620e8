"""Texts of several segments: `<s> first </s></s> second </s>`, as XLM-R joins two sentences."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m3p.data.tokenizer import BOS, EOS, Tokenizer

Ids = NDArray[np.int64]


def encode_segments(texts: Sequence[Sequence[str]], limit: int, tokenizer: Tokenizer) -> tuple[Ids, Ids]:
    """Return the tokens of texts [N] of one or more segments each: (end to end [W], the length of each [N]).

    A text has `limit` tokens at most, `<s>` and `</s>` counted. One that is longer loses the last tokens of its longest
    segments, until they are as long as the next longest, and so on, so that the shorter ones stay whole.
    """
    found = [_join(segments, limit, tokenizer) for segments in texts]
    return np.concatenate([np.zeros(0, np.int64), *found]), np.array([len(ids) for ids in found], np.int64)


def _join(segments: Sequence[str], limit: int, tokenizer: Tokenizer) -> Ids:
    pieces = [tokenizer.encode(segment, limit)[1:-1] for segment in segments]
    longest = _longest([len(ids) for ids in pieces], limit - 2 * len(pieces))
    between = [np.array([EOS, EOS])] * len(pieces)
    parts = [part for ids, separator in zip(pieces, between, strict=True) for part in (ids[:longest], separator)]
    return np.concatenate([np.array([BOS]), *parts[:-1], np.array([EOS])])


def _longest(lengths: Sequence[int], limit: int) -> int:
    """Return the length to which segments of `lengths` are cut so that they have `limit` tokens in all."""
    left, longest = limit, 0
    for number, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - number)
        if length > share:
            return max(share, 0)
        left, longest = left - length, length
    return longest
