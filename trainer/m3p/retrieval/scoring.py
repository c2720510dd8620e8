"""A trained network as a scorer: embeddings of texts and pictures (dual encoder), and matching of pairs (cross-encoder)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m3p.batch import Picture
from m3p.batch import Sequence as Packed
from m3p.data.tokenizer import BOS, Tokenizer
from m3p.errors import UserError
from m3p.model.attention import Layout
from m3p.model.heads import EmbeddingHead, Head, PairHead
from m3p.model.m3p import M3P
from m3p.objectives.tasks import TASKS
from m3p.packing import Packer
from m3p.retrieval.pairs import Captions, EmbeddedPictures, caption_batches, pair_batches
from m3p.runs import Run

Floats = NDArray[np.float32]
Read = Callable[[Tensor, Layout, Tensor], Tensor]
PICTURES_AT_ONCE = 64
"""Pictures that are read and embedded together, to be matched: bounds the memory of their features."""
_BLOCK = 1 << 22
"""Scores that are looked at together: bounds the copies made of a large score matrix."""
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
        return self.embed_captions(self.tokenize(texts))

    def embed_captions(self, captions: Captions) -> Floats:
        """Return [C, projection] of unit length."""
        head, order, parts = self._head(EmbeddingHead), [], []
        with torch.inference_mode():
            for rows, batch in caption_batches(captions, self._batch_size):
                hidden, layout, _ = self._model.encode(batch.to(self._device))
                every = torch.arange(len(rows), device=self._device)
                order.append(rows)
                parts.append(head.embed_text(head.pool(hidden, layout, every, 0)).float().cpu())
        vectors = torch.cat(parts).numpy()
        found = np.empty_like(vectors)
        found[np.concatenate(order)] = vectors
        return found

    def embed_pictures(self, pictures: Sequence[Picture]) -> Floats:
        """Return [N, projection] of unit length."""
        head = self._head(EmbeddingHead)
        sequences = (Packed(np.array([BOS], np.int64), picture) for picture in pictures)
        return self._run(sequences, lambda hidden, layout, every: head.embed_image(head.pool(hidden, layout, every, 1)))

    def match(self, texts: Sequence[str], pictures: Sequence[Picture], pairs: NDArray[np.int64]) -> Floats:
        """Return the matching logit [P] of each (caption, picture) of `pairs` [P, 2]. Each picture is embedded once."""
        captions, found = self.tokenize(texts), np.empty(len(pairs), np.float32)
        by_picture = pairs[:, 1].argsort(kind="stable")
        numbers, firsts = np.unique(pairs[by_picture, 1], return_index=True)
        for first in range(0, len(numbers), PICTURES_AT_ONCE):
            some = slice(first, first + PICTURES_AT_ONCE)
            end = firsts[some.stop] if some.stop < len(numbers) else len(pairs)
            rows = by_picture[firsts[first] : end]
            embedded = self.embed_visual([pictures[number] for number in numbers[some].tolist()])
            inside = np.searchsorted(numbers[some], pairs[rows, 1])
            found[rows] = self.match_embedded(captions, embedded, np.stack([pairs[rows, 0], inside], 1))
        return found

    def tokenize(self, texts: Sequence[str]) -> Captions:
        """Return the texts as token ids, cut to the length of training."""
        return Captions.of(texts, self._tokenizer, self._most_tokens)

    def embed_visual(self, pictures: Sequence[Picture]) -> EmbeddedPictures:
        """Return pictures as the visual embedder gives them, so that any number of pairs can show them."""
        with torch.inference_mode():
            parts = [
                self._embed_visual(pictures[n : n + self._batch_size])
                for n in range(0, len(pictures), self._batch_size)
            ]
        return EmbeddedPictures(torch.cat(parts), np.array([picture.tokens for picture in pictures], np.int64))

    def match_embedded(self, captions: Captions, pictures: EmbeddedPictures, pairs: NDArray[np.int64]) -> Floats:
        """Return the matching logit [P] of each (caption, picture) of `pairs` [P, 2]; the pictures are embedded already."""
        head, found = self._head(PairHead), torch.empty(len(pairs))
        with torch.inference_mode():
            for rows, batch in pair_batches(captions, pictures, pairs, self._batch_size):
                hidden, layout, _ = self._model.encode(batch.to(self._device), pictures.vectors)
                every = torch.arange(len(rows), device=self._device)
                found[torch.from_numpy(rows)] = head.score_pairs(hidden, layout, every).float().cpu()
        return found.numpy()

    def _embed_visual(self, pictures: Sequence[Picture]) -> Tensor:
        """Move pictures to the device and embed them: -> [R, width]."""
        features = np.concatenate([picture.features for picture in pictures])
        boxes = [picture.boxes for picture in pictures if picture.boxes is not None]
        corners = np.concatenate(boxes) if boxes else np.zeros((0, 4), np.float32)
        return self._model.embed_visual(
            torch.from_numpy(features).to(self._device), torch.from_numpy(corners).to(self._device)
        )

    def _head(self, kind: type[Wanted]) -> Wanted:
        """Return the first head of this kind. Raises UserError where no task of the run has trained one."""
        found = next((head for head in self._model.heads.values() if isinstance(head, kind)), None)
        if found is None:
            embeds = issubclass(kind, EmbeddingHead)
            able = [name for name, task in TASKS.items() if (task.embeds if embeds else task.scores_pairs)]
            trained, wanted = ", ".join(self._model.heads), " or ".join(f"tasks.{name}" for name in able)
            raise UserError(f"the run was trained on {trained}; this needs one whose {wanted} has a weight")
        return found

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


def shortlist(scores: Floats, limit: int) -> NDArray[np.int64]:
    """Return the `limit` best candidates of each query, best first: [Q, P] -> [Q, limit]; a block of queries at a time."""
    limit = min(limit, scores.shape[1])
    rows, parts = max(1, _BLOCK // scores.shape[1]), []
    for first in range(0, len(scores), rows):
        worst_first = -scores[first : first + rows]
        best = np.argpartition(worst_first, limit - 1, axis=1)[:, :limit]
        order = np.take_along_axis(worst_first, best, 1).argsort(1, kind="stable")
        parts.append(np.take_along_axis(best, order, 1))
    return np.concatenate(parts)


def _groups(sequences: Iterator[Packed], size: int) -> Iterator[list[Packed]]:
    while group := list(islice(sequences, size)):
        yield group
