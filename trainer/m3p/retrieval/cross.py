"""Many pairs through the cross-encoder: picture by picture, in blocks, on all ranks, resumable.

Every picture is read, moved to the device and embedded once, and meets there all captions of all languages that it is to be
scored with. Memory holds the pictures of one block and the scores of one language.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from m3p import distributed
from m3p.batch import Picture
from m3p.retrieval.blocks import Blocks, cut, duration
from m3p.retrieval.pairs import Captions, EmbeddedPictures
from m3p.retrieval.scoring import PICTURES_AT_ONCE, Scorer
from m3p.terminal import say

Floats = NDArray[np.float32]
PAIRS_OF_A_BLOCK = 1 << 14
"""Pairs of a block, at most, unless one picture has more: what a kill can cost."""
PROBED_PAIRS = 256
"""Pairs that are scored to estimate the time of all."""
WORTH_AN_ESTIMATE = 20_000
"""Pairs from which on the time of all is estimated before it starts."""


@dataclass(frozen=True)
class WantedPairs:
    """The pairs of one language that are scored, picture by picture."""

    captions: NDArray[np.int64]
    """[P] the number of each pair's caption, in rising order for each picture."""
    starts: NDArray[np.int64]
    """[N + 1] where the pairs of each picture begin, and where those of the last one end."""

    @classmethod
    def listed(cls, pairs: NDArray[np.int64], pictures: int) -> "WantedPairs":
        """Take `pairs` [P, 2] (picture, caption), in any order and each any number of times."""
        base = int(pairs[:, 1].max()) + 1
        keys = np.unique(pairs[:, 0] * base + pairs[:, 1])
        return cls(keys % base, np.searchsorted(keys // base, np.arange(pictures + 1)))

    @classmethod
    def every(cls, parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], pictures: int) -> "WantedPairs":
        """Take all pairs within each part, (pictures, captions); the parts' pictures follow each other and are all there are."""
        if len(parts) == 1:
            return _AllPairs(pictures, parts[0][1])
        captions = [np.tile(texts, len(images)) for images, texts in parts]
        counts = np.concatenate([np.full(len(images), len(texts)) for images, texts in parts])
        return cls(np.concatenate(captions), np.concatenate([[0], counts.cumsum()]))

    @property
    def counts(self) -> NDArray[np.int64]:
        """[N] pairs of each picture."""
        return np.diff(self.starts)

    def of(self, first: int, end: int) -> NDArray[np.int64]:
        """Return the pairs of pictures `first` to `end`: [P, 2] (caption, number of the picture behind `first`)."""
        pictures = np.arange(end - first).repeat(self.counts[first:end])
        return np.stack([self.captions[self.starts[first] : self.starts[end]], pictures], 1)

    def find(self, pictures: NDArray[np.int64], captions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the place among all pairs of each pair of picture and caption, which must be wanted: arrays of one shape."""
        return np.searchsorted(self._keys, pictures * self._base + captions)

    @cached_property
    def _base(self) -> int:
        return int(self.captions.max()) + 1

    @cached_property
    def _keys(self) -> NDArray[np.int64]:
        """[P] one number for each pair, in rising order."""
        keys: NDArray[np.int64] = np.arange(len(self.counts)).repeat(self.counts) * self._base + self.captions
        return keys


class _AllPairs(WantedPairs):
    """Every picture with each of `captions` [C], without a list of the pairs."""

    def __init__(self, pictures: int, captions: NDArray[np.int64]) -> None:
        super().__init__(captions, np.arange(pictures + 1) * len(captions))

    def of(self, first: int, end: int) -> NDArray[np.int64]:
        """Return the pairs of pictures `first` to `end`: [P, 2] (caption, number of the picture behind `first`)."""
        pictures = np.arange(end - first).repeat(len(self.captions))
        return np.stack([np.tile(self.captions, end - first), pictures], 1)


class PairMatcher:
    """Scores the wanted pairs of all languages by the cross-encoder.

    Args:
        scorer: the network.
        captions: the texts of each language, tokenised.
        pictures: [N] the gallery.
        wanted: the pairs of each language that are scored.
    """

    def __init__(
        self,
        scorer: Scorer,
        captions: Mapping[str, Captions],
        pictures: Sequence[Picture],
        wanted: Mapping[str, WantedPairs],
    ) -> None:
        self._scorer, self._captions, self._pictures, self._wanted = scorer, captions, pictures, wanted

    def match(self, blocks: Blocks, limit: int = PAIRS_OF_A_BLOCK) -> dict[str, list[Floats]]:
        """Return, for each language, the matching logits of its wanted pairs, in their order, as arrays to be joined end to end.

        All ranks of the job call it, and each returns the same. A block holds the pairs of as many pictures as have at most
        `limit` together, or of one picture.
        """
        counts = np.sum([pairs.counts for pairs in self._wanted.values()], axis=0)
        bounds = cut(counts, limit)
        sizes = [int(counts[first:end].sum()) for first, end in bounds]
        self._announce(blocks, sizes)
        found = blocks.compute("cross-encoder", sizes, lambda number: self._match_block(*bounds[number]), "pairs")
        parts: dict[str, list[Floats]] = {language: [] for language in self._wanted}
        for (first, end), scores in zip(bounds, found, strict=True):
            place = 0
            for language, pairs in self._wanted.items():
                number = int(pairs.starts[end] - pairs.starts[first])
                parts[language].append(scores[place : place + number])
                place += number
        return parts

    def _match_block(self, first: int, end: int) -> Floats:
        """Score the pairs of pictures `first` to `end`, language by language: their logits end to end."""
        found: dict[str, list[Floats]] = {language: [] for language in self._wanted}
        for start in range(first, end, PICTURES_AT_ONCE):
            stop = min(start + PICTURES_AT_ONCE, end)
            embedded = self._embed(start, stop)
            for language, pairs in self._wanted.items():
                scores = self._scorer.match_embedded(self._captions[language], embedded, pairs.of(start, stop))
                found[language].append(scores)
        return np.concatenate([scores for parts in found.values() for scores in parts])

    def _embed(self, first: int, end: int) -> EmbeddedPictures:
        """Return pictures `first` to `end` as the network's visual embedder gives them."""
        return self._scorer.embed_visual([self._pictures[number] for number in range(first, end)])

    def _announce(self, blocks: Blocks, sizes: Sequence[int]) -> None:
        """Say how many passes there are and, where they are many, how long they will take: a few are tried."""
        done = distributed.broadcast_object(blocks.done(sizes, "cross-encoder"))
        left = sum(sizes) - done
        if blocks.rank or not left:
            return
        line = f"cross-encoder: {left:,} passes, one for each pair of caption and picture"
        if done:
            line += f"; {done:,} were done before"
        if left >= WORTH_AN_ESTIMATE:
            speed = self.pairs_per_second()
            time_left = duration(left / speed / blocks.ranks)
            line += f"; about {time_left} at {speed:,.0f} a second on each of {blocks.ranks} ranks"
        say(line)

    def pairs_per_second(self) -> float:
        """Score some pairs twice, and time the second go."""
        language, pairs = next(iter(self._wanted.items()))
        end = min(int(np.searchsorted(pairs.starts, PROBED_PAIRS)) or 1, len(self._pictures))
        embedded, some = self._embed(0, end), pairs.of(0, end)[:PROBED_PAIRS]
        for _ in range(2):
            start = time.perf_counter()
            self._scorer.match_embedded(self._captions[language], embedded, some)
            seconds = time.perf_counter() - start
        return len(some) / seconds
