"""A trained network as a scorer: embeddings of texts and pictures (dual encoder), and matching of pairs (cross-encoder)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from m3p.batch import Picture
from m3p.batch import Sequence as Packed
from m3p.data.tokenizer import BOS, Tokenizer
from m3p.model.attention import Layout
from m3p.model.heads import EmbeddingHead, Head, PairHead
from m3p.model.m3p import M3P
from m3p.packing import Packer
from m3p.runs import Run

Floats = NDArray[np.float32]
Read = Callable[[Tensor, Layout, Tensor], Tensor]
_BLOCK = 1 << 16
"""Pairs that are listed at once: bounds the memory of an exhaustive scoring."""
Wanted = TypeVar("Wanted", bound=Head)


class Scorer:
    """Scores captions against pictures.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: of the run.
        max_tokens: texts are cut to this, as in training.
        batch_size: sequences that are forwarded at once.
    """

    def __init__(self, model: M3P, tokenizer: Tokenizer, max_tokens: int, batch_size: int) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._most_tokens, self._batch_size = max_tokens, batch_size
        self._device = next(model.parameters()).device

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Return [C, projection] of unit length."""
        head = self._head(EmbeddingHead)
        sequences = [Packed(self._tokenizer.encode(text, self._most_tokens)) for text in texts]
        return self._run(sequences, lambda hidden, layout, every: head.embed_text(head.pool(hidden, layout, every, 0)))

    def embed_pictures(self, pictures: Sequence[Picture]) -> Floats:
        """Return [N, projection] of unit length."""
        head = self._head(EmbeddingHead)
        sequences = [Packed(np.array([BOS], np.int64), picture) for picture in pictures]
        return self._run(sequences, lambda hidden, layout, every: head.embed_image(head.pool(hidden, layout, every, 1)))

    def match(self, texts: Sequence[str], pictures: Sequence[Picture], pairs: NDArray[np.int64]) -> Floats:
        """Return the matching logit [P] of each (caption, picture) of `pairs` [P, 2]."""
        head = self._head(PairHead)
        tokens = [self._tokenizer.encode(text, self._most_tokens) for text in texts]
        sequences = (Packed(tokens[caption], pictures[picture]) for caption, picture in pairs.tolist())
        shown = tqdm(sequences, total=len(pairs), desc="cross-encoder", unit="pair", leave=False, disable=None)
        return self._run(shown, head.score_pairs)

    def match_all(self, texts: Sequence[str], pictures: Sequence[Picture]) -> Floats:
        """Return the matching logit of every caption with every picture, [C, N]; pairs are made in blocks."""
        rows = max(1, _BLOCK // len(pictures))
        parts = []
        for first in tqdm(range(0, len(texts), rows), desc="captions", unit="block", leave=False, disable=None):
            block = texts[first : first + rows]
            pairs = np.indices((len(block), len(pictures)), np.int64).reshape(2, -1).T
            parts.append(self.match(block, pictures, pairs).reshape(len(block), len(pictures)))
        return np.concatenate(parts)

    def truncated(self, texts: Sequence[str]) -> int:
        """Return how many of the texts have more tokens than the network is given."""
        return sum(len(self._tokenizer.encode(text, self._most_tokens + 1)) > self._most_tokens for text in texts)

    def _head(self, kind: type[Wanted]) -> Wanted:
        """Return the first head of this kind; the recipe's evaluations are checked for a task that has one."""
        return next(head for head in self._model.heads.values() if isinstance(head, kind))

    def _run(self, sequences: Iterable[Packed], read: Read) -> Floats:
        """Forward `sequences` in batches and return what `read` takes from each, in order."""
        parts = []
        with torch.inference_mode():
            for group in _groups(iter(sequences), self._batch_size):
                packer = Packer(*self._model.features)
                for sequence in group:
                    packer.add(sequence)
                batch = packer.finish(len(group)).to(self._device)
                hidden, layout, _ = self._model.encode(batch)
                parts.append(read(hidden, layout, torch.arange(len(group), device=self._device)).float().cpu())
        return torch.cat(parts).numpy()


def scorer_of(run: Run, batch_size: int = 64) -> Scorer:
    """Return what scores captions against pictures with the network of `run`, forwarding `batch_size` sequences at once."""
    return Scorer(run.model, run.tokenizer, run.max_tokens, batch_size)


def shortlist(scores: Floats, most: int) -> NDArray[np.int64]:
    """Return the `most` best candidates of each query, best first: [Q, P] -> [Q, most]."""
    most = min(most, scores.shape[1])
    best = np.argpartition(-scores, most - 1, axis=1)[:, :most]
    order = np.take_along_axis(-scores, best, 1).argsort(1, kind="stable")
    return np.take_along_axis(best, order, 1)


def _groups(sequences: Iterator[Packed], size: int) -> Iterator[list[Packed]]:
    while group := list(islice(sequences, size)):
        yield group
