"""The scores of one language in one fold of the pool: every pair, or the shortlist of each query."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3p.atomic import replacing
from m3p.retrieval.metrics import Beyond, Ranked, Ties, rank_queries
from m3p.retrieval.pool import Pool
from m3p.retrieval.scoring import Floats


class Listed(NamedTuple):
    """The candidates of each query that were scored."""

    candidates: NDArray[np.int64]
    """[Q, k] their numbers in the fold."""
    scores: Floats
    """[Q, k]."""


@dataclass(frozen=True)
class FoldScores:
    """Scores of the pictures and captions of one fold, n pictures and c captions."""

    images: NDArray[np.int64]
    """[n] numbers of its pictures in the pool."""
    captions: NDArray[np.int64]
    """[c] numbers of its captions among those of the language."""
    right: NDArray[np.bool_]
    """[n, c] whether a picture is a right answer to a caption, and the other way round."""
    dense: Floats | None = None
    """[n, c] the scores of all pairs; None where shortlists were scored."""
    to_images: Listed | None = None
    """The pictures that each caption's shortlist holds."""
    to_texts: Listed | None = None
    """The captions that each picture's shortlist holds."""

    def rank(self, ties: Ties) -> tuple[Ranked, Ranked]:
        """Rank pictures for each caption [c], and captions for each picture [n]."""
        if self.dense is not None:
            return rank_queries(self.dense.T, self.right.T, ties), rank_queries(self.dense, self.right, ties)
        assert self.to_images is not None, "a fold has all scores or shortlists"
        assert self.to_texts is not None, "a fold has all scores or shortlists"
        return _rank_listed(self.to_images, self.right.T, ties), _rank_listed(self.to_texts, self.right, ties)

    def kept(self) -> tuple[int, int]:
        """Return how many queries have a right answer in their shortlist, and how many have one at all."""
        assert self.to_images is not None, "asked of shortlists"
        assert self.to_texts is not None, "asked of shortlists"
        found = asked = 0
        for listed, right in ((self.to_images, self.right.T), (self.to_texts, self.right)):
            found += int(np.take_along_axis(right, listed.candidates, 1).any(axis=1).sum())
            asked += int(right.any(axis=1).sum())
        return found, asked

    def best(self, caption: int, limit: int) -> list[tuple[int, float, bool]]:
        """Return the best pictures for a caption of the fold: (number in the pool, score, whether it is right)."""
        if self.dense is not None:
            scores, candidates = self.dense[:, caption], np.arange(len(self.images))
        else:
            assert self.to_images is not None, "a fold has all scores or shortlists"
            scores, candidates = self.to_images.scores[caption], self.to_images.candidates[caption]
        order = (-scores).argsort(kind="stable")[:limit]
        return [
            (int(self.images[place]), float(score), bool(self.right[place, caption]))
            for place, score in zip(candidates[order].tolist(), scores[order].tolist(), strict=True)
        ]

    def save(self, path: Path, pool: Pool, language: str) -> None:
        """Write the scores as an npz of numpy, with the ids of pictures and captions.

        It holds `scores` float32 [n, c], NaN for a pair that was not scored, `picture_ids` [n], `caption_ids` [c] (the concept
        and the caption's number under it) and `captions` [c], the texts.
        """
        texts = [pool.captions[language][number] for number in self.captions.tolist()]
        ids, seen = list[str](), dict[str, int]()
        for caption in texts:
            seen[caption.concept] = seen.get(caption.concept, -1) + 1
            ids.append(f"{caption.concept}#{seen[caption.concept]}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as aside, aside.open("wb") as file:
            np.savez(
                file,
                scores=self._table(),
                picture_ids=np.array([pool.images[number] for number in self.images.tolist()]),
                caption_ids=np.array(ids),
                captions=np.array([caption.text for caption in texts]),
            )

    def _table(self) -> Floats:
        if self.dense is not None:
            return self.dense
        assert self.to_images is not None, "a fold has all scores or shortlists"
        assert self.to_texts is not None, "a fold has all scores or shortlists"
        table = np.full(self.right.shape, np.nan, np.float32)
        np.put_along_axis(table.T, self.to_images.candidates, self.to_images.scores, 1)
        np.put_along_axis(table, self.to_texts.candidates, self.to_texts.scores, 1)
        return table


def _rank_listed(listed: Listed, right: NDArray[np.bool_], ties: Ties) -> Ranked:
    """Rank each query's shortlist; what is not in it ranks behind all that is."""
    beyond = Beyond(right.sum(axis=1), right.shape[1])
    return rank_queries(listed.scores, np.take_along_axis(right, listed.candidates, 1), ties, beyond)
