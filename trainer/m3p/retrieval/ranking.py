"""A gallery, scored and ranked in every language: by the dual encoder, by the cross-encoder, or by a shortlist of the one that
the other scores again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m3p.paths import as_file_name
from m3p.retrieval.blocks import Blocks, cut
from m3p.retrieval.centres import move
from m3p.retrieval.cross import PairMatcher, WantedPairs
from m3p.retrieval.fold_scores import FoldScores, Listed
from m3p.retrieval.metrics import QueryRanks, Ties
from m3p.retrieval.pairs import Captions
from m3p.retrieval.pictures import Pictures
from m3p.retrieval.scoring import Floats, Scorer, shortlist

Scoring = Literal["dual", "cross", "rerank"]
EMBEDDED_OF_A_BLOCK = 1024
"""Pictures or captions whose embeddings are one block."""


@dataclass(frozen=True)
class Way:
    """How pairs are scored, and how scores are ranked."""

    scoring: Scoring
    shortlist: int = 0
    """Candidates of each query that the cross-encoder scores again; 0 without re-ranking."""
    dual_weight: float = 0.0
    """What the cosine of the dual encoder is multiplied by before it is added to the cross-encoder's logit."""
    ties: Ties = "against"


@dataclass
class Ranking:
    """What a scoring found."""

    ranks: dict[str, QueryRanks] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    """Captions that were cut to the length of training, by language."""
    shortlist_recall: dict[str, float] = field(default_factory=dict)
    """Percent of queries with a right answer in their shortlist, by language."""
    passes: int = 0
    """Pairs that went through the cross-encoder."""
    found: list[tuple[str, str, list[tuple[int, float, bool]]]] = field(default_factory=list)
    """Of a few queries: language, caption, and the best pictures (number in the pool, score, whether it is right)."""


@dataclass
class _Language:
    """The captions of one language: repeated texts are scored once."""

    tokens: Captions
    """The different texts, tokenised."""
    numbers: NDArray[np.int64]
    """[C] which of them each caption is."""
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    """The pictures and captions of each fold."""
    embedded: Floats | None = None
    """[texts, D] their embeddings, where the dual encoder is used."""
    listed: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    """Of each fold the shortlists: pictures of each caption [c, k] and captions of each picture [n, k], numbers in the fold."""


class Ranker:
    """Scores a gallery and ranks it.

    Args:
        scorer: the network.
        pictures: the gallery.
        way: how pairs are scored.
        blocks: where parts of the work are kept and how they are shared among ranks.
        shown: queries of a language whose best pictures are told.
        saved: folder that scores are written to, a file a language and fold; None: nowhere.
        centres: by language the vector [D] that is taken away from its captions' embeddings; None: none is.
    """

    def __init__(
        self,
        scorer: Scorer,
        pictures: Pictures,
        way: Way,
        blocks: Blocks,
        shown: int = 0,
        saved: Path | None = None,
        centres: Mapping[str, Floats] | None = None,
    ) -> None:
        self._scorer, self._pictures, self._way, self._centres = scorer, pictures, way, centres
        self._blocks, self._shown, self._saved = blocks, shown, saved
        self._images: Floats | None = None
        self._languages = {language: self._prepare(language) for language in pictures.pool.captions}

    def rank(self) -> Ranking:
        """Score all pairs that the way wants, and rank every query. All ranks of the job call it; each returns the same."""
        if self._way.scoring != "cross" or self._way.dual_weight:
            self._embed()
        result, parts = Ranking(), dict[str, list[Floats]]()
        wanted = {} if self._way.scoring == "dual" else {code: self._wanted(code) for code in self._languages}
        if wanted:
            tokens = {language: one.tokens for language, one in self._languages.items()}
            parts = PairMatcher(self._scorer, tokens, self._pictures.visuals, wanted).match(self._blocks)
            result.passes = sum(int(pairs.starts[-1]) for pairs in wanted.values())
        for language, one in self._languages.items():
            result.truncated[language] = int(one.tokens.truncated[one.numbers].sum())
            logits = np.concatenate(parts.pop(language)) if wanted else None
            folds = self._score(language, wanted.get(language), logits)
            self._take(result, language, folds)
        return result

    def _prepare(self, language: str) -> _Language:
        captions = self._pictures.pool.captions[language]
        places: dict[str, int] = {}
        numbers = np.array([places.setdefault(caption.text, len(places)) for caption in captions], np.int64)
        return _Language(self._scorer.tokenize(list(places)), numbers, self._pictures.pool.parts(language))

    def _embed(self) -> None:
        """Embed the pictures, and the captions of every language."""
        visuals = self._pictures.visuals
        bounds = cut(np.ones(len(visuals), np.int64), EMBEDDED_OF_A_BLOCK)
        sizes = [end - first for first, end in bounds]
        found = self._blocks.compute(
            "pictures", sizes, lambda n: self._scorer.embed_pictures(visuals[slice(*bounds[n])]), "pictures"
        )
        self._images = np.concatenate(found)
        for number, (language, one) in enumerate(self._languages.items()):
            one.embedded = self._embed_captions(one.tokens, f"captions-{number}")
            if self._centres is not None:
                one.embedded = move(one.embedded, self._centres[language])

    def _embed_captions(self, captions: Captions, name: str) -> Floats:
        bounds = cut(np.ones(len(captions.lengths), np.int64), EMBEDDED_OF_A_BLOCK)
        sizes = [end - first for first, end in bounds]
        found = self._blocks.compute(
            name, sizes, lambda n: self._scorer.embed_captions(captions.part(*bounds[n])), "captions"
        )
        return np.concatenate(found)

    def _cosines(self, one: _Language, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Floats:
        """Return the cosines of a fold, [n, c]."""
        assert self._images is not None, "pictures are embedded before"
        assert one.embedded is not None, "captions are embedded before"
        found: Floats = self._images[images] @ one.embedded[one.numbers[captions]].T
        return found

    def _wanted(self, language: str) -> WantedPairs:
        """Return which pairs of a language go through the cross-encoder."""
        one, pictures = self._languages[language], len(self._pictures.visuals)
        if self._way.scoring == "cross":
            return WantedPairs.every(
                [(images, np.unique(one.numbers[captions])) for images, captions in one.parts], pictures
            )
        pairs = []
        for images, captions in one.parts:
            cosines = self._cosines(one, images, captions)
            best_images, best_texts = shortlist(cosines.T, self._way.shortlist), shortlist(cosines, self._way.shortlist)
            one.listed.append((best_images, best_texts))
            numbers = one.numbers[captions]
            pairs.append(np.stack([images[best_images].ravel(), numbers.repeat(best_images.shape[1])], 1))
            pairs.append(np.stack([images.repeat(best_texts.shape[1]), numbers[best_texts].ravel()], 1))
        return WantedPairs.listed(np.concatenate(pairs), pictures)

    def _score(self, language: str, wanted: WantedPairs | None, logits: Floats | None) -> Iterator[FoldScores]:
        """Yield the scores of each fold of a language; `logits` [P] are those of the `wanted` pairs."""
        one, first = self._languages[language], 0
        groups = self._pictures.pool.groups(language)
        for fold, (images, captions) in enumerate(one.parts):
            right = groups[0][images][:, None] == groups[1][captions][None, :]
            if wanted is None or logits is None:
                yield FoldScores(images, captions, right, self._cosines(one, images, captions))
            elif self._way.scoring == "cross":
                texts, columns = np.unique(one.numbers[captions], return_inverse=True)
                # Pictures of a fold follow each other, and so do their pairs.
                size = len(images) * len(texts)
                dense = logits[first : first + size].reshape(len(images), len(texts))
                first += size
                dense = dense if np.array_equal(columns, np.arange(len(texts))) else dense[:, columns]
                yield FoldScores(images, captions, right, self._with_cosines(one, images, captions, dense))
            else:
                best_images, best_texts = one.listed[fold]
                numbers = one.numbers[captions]
                to_images = logits[wanted.find(images[best_images], numbers[:, None])]
                to_texts = logits[wanted.find(images[:, None], numbers[best_texts])]
                if self._way.dual_weight:
                    cosines = self._way.dual_weight * self._cosines(one, images, captions)
                    to_images = to_images + np.take_along_axis(cosines.T, best_images, 1)
                    to_texts = to_texts + np.take_along_axis(cosines, best_texts, 1)
                listed = Listed(best_images, to_images), Listed(best_texts, to_texts)
                yield FoldScores(images, captions, right, None, *listed)

    def _with_cosines(
        self, one: _Language, images: NDArray[np.int64], captions: NDArray[np.int64], logits: Floats
    ) -> Floats:
        """Return logits [n, c] with the weighted cosines added."""
        if not self._way.dual_weight:
            return logits
        cosines = self._cosines(one, images, captions)
        cosines *= np.float32(self._way.dual_weight)
        cosines += logits
        return cosines

    def _take(self, result: Ranking, language: str, folds: Iterator[FoldScores]) -> None:
        """Rank the folds of a language, and put down what they hold."""
        pool = self._pictures.pool
        images, captions = len(pool.images), len(pool.captions[language])
        ranks = QueryRanks(
            np.zeros(captions, np.int64), np.zeros(images, np.int64), np.full(captions, np.nan), np.full(images, np.nan)
        )
        assert ranks.text_to_image_ndcg is not None, "it was just made"
        assert ranks.image_to_text_ndcg is not None, "it was just made"
        kept = asked = 0
        for number, fold in enumerate(folds):
            to_images, to_texts = fold.rank(self._way.ties)
            ranks.text_to_image[fold.captions], ranks.text_to_image_ndcg[fold.captions] = to_images
            ranks.image_to_text[fold.images], ranks.image_to_text_ndcg[fold.images] = to_texts
            if self._way.scoring == "rerank":
                kept, asked = (a + b for a, b in zip((kept, asked), fold.kept(), strict=True))
            if number == 0:
                result.found += self._best(language, fold)
            if self._saved is not None and self._blocks.rank == 0:
                name = as_file_name(language)
                name += "" if len(self._languages[language].parts) == 1 else f"-fold{number + 1}"
                fold.save(self._saved / f"{name}.npz", pool, language)
        result.ranks[language] = ranks
        if asked:
            result.shortlist_recall[language] = 100 * kept / asked

    def _best(self, language: str, fold: FoldScores) -> Iterator[tuple[str, str, list[tuple[int, float, bool]]]]:
        """Yield a few queries, evenly spread, with the pictures that scored highest."""
        captions = self._pictures.pool.captions[language]
        number = min(self._shown, len(fold.captions))
        for place in np.linspace(0, len(fold.captions) - 1, number).astype(int).tolist() if number else ():
            yield language, captions[int(fold.captions[place])].text, fold.best(place, SHOWN_PICTURES)


SHOWN_PICTURES = 5
"""Best pictures of a query that are told."""
