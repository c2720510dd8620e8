"""Pairs of captions and pictures, laid out for the cross-encoder.

A caption is tokenised once and a picture is embedded once, however many pairs hold them. A batch is then made of index arrays
that numpy fills for all of its pairs together: no Python runs for a pair.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m3p.batch import Batch
from m3p.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Captions:
    """Captions as token ids, cut to the length of training."""

    ids: NDArray[np.int64]
    """[W] token ids of all captions, end to end; each begins with `<s>` and ends with `</s>`."""
    lengths: NDArray[np.int64]
    """[C] tokens of each caption."""
    truncated: NDArray[np.bool_]
    """[C] whether a caption had more tokens than it was cut to."""

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> "Captions":
        """Tokenise `texts` [C] and cut each to `max_tokens`, its `<s>` and `</s>` included."""
        ids, lengths = tokenizer.encode_flat(texts, max_tokens + 1)
        longer = lengths > max_tokens
        last_pieces = lengths.cumsum()[longer] - 2  # of a longer one, the last piece is left out, and `</s>` stays
        return cls(np.delete(ids, last_pieces), np.minimum(lengths, max_tokens), longer)

    def part(self, first: int, end: int) -> "Captions":
        """Return captions `first` to `end`."""
        bounds = np.concatenate([[0], self.lengths.cumsum()])
        return Captions(self.ids[bounds[first] : bounds[end]], self.lengths[first:end], self.truncated[first:end])

    @property
    def starts(self) -> NDArray[np.int64]:
        """[C] where each caption begins in `ids`."""
        return self.lengths.cumsum() - self.lengths


@dataclass(frozen=True)
class EmbeddedPictures:
    """Pictures as the network's visual embedder gives them, on the device of the network."""

    vectors: Tensor
    """[R, width] the visual tokens of all pictures, end to end."""
    tokens: NDArray[np.int64]
    """[N] visual tokens of each picture."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """[N] the row of `vectors` where each picture begins."""
        return self.tokens.cumsum() - self.tokens


def pair_batches(
    captions: Captions, pictures: EmbeddedPictures, pairs: NDArray[np.int64], size: int
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Yield batches of up to `size` of `pairs` [P, 2] (caption, picture), each with the rows of `pairs` that it holds.

    Pairs are taken in the order of their length, since attention over sequences of one length is one dense product.
    """
    caption_starts, picture_starts = captions.starts, pictures.starts
    shown = pictures.tokens[pairs[:, 1]]
    lengths = captions.lengths[pairs[:, 0]] + shown
    order = lengths.argsort(kind="stable")
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        chosen = pairs[rows, 0]
        words = captions.lengths[chosen]
        yield (
            rows,
            _batch(
                captions.ids[_ranges(caption_starts[chosen], words)],
                words,
                lengths[rows],
                picture_starts[pairs[rows, 1]],
            ),
        )


def caption_batches(captions: Captions, size: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Yield batches of up to `size` captions without a picture, in the order of their length, each with their numbers."""
    starts, order = captions.starts, captions.lengths.argsort(kind="stable")
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        words = captions.lengths[rows]
        yield rows, _batch(captions.ids[_ranges(starts[rows], words)], words, words, np.zeros(len(rows), np.int64))


def _batch(
    token_ids: NDArray[np.int64], words: NDArray[np.int64], lengths: NDArray[np.int64], rows: NDArray[np.int64]
) -> Batch:
    """Return a batch of pairs with `words` [P] tokens of text in `lengths` [P] slots; the picture of each begins at `rows` [P].

    It holds no features: `M3P.encode` takes the pictures' vectors beside it.
    """
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(
        token_ids=torch.from_numpy(token_ids),
        words=torch.from_numpy(words),
        lengths=torch.from_numpy(lengths),
        visual_starts=torch.from_numpy(rows),
        visual_features=torch.zeros(0),
        visual_boxes=torch.zeros(0, 4),
        hidden=nothing,
        hidden_rows=nothing,
        targets={},
        tokens=int(lengths.sum()),
        embedded_rows=0,
        longest=int(lengths.max()),
        samples=len(words),
    )


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return start, start + 1, ... of each run, `lengths` [P] of them, end to end."""
    ends = lengths.cumsum()
    return np.arange(ends[-1]) + (starts - ends + lengths).repeat(lengths)
