"""What is ranked against what: the pictures of an evaluation, and in each language the captions that ask for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3p.errors import UserError
from m3p.retrieval.metrics import QueryRanks


@dataclass(frozen=True)
class Caption:
    """One caption of the pool and the concept whose pictures are right for it."""

    text: str
    concept: str


@dataclass(frozen=True)
class Pool:
    """What is ranked against what: pictures, and for each language its captions.

    `images` [N] are the pictures' ids. `concepts` [N] say which pictures are right for the same captions: the concept of
    a picture, or its own name where the record names none. `captions` holds [C] captions for each language. `folds` [N] is
    the number of the fold of each picture, from 0: captions and pictures of one fold are ranked against each other alone.
    """

    images: list[str]
    concepts: list[str]
    captions: dict[str, list[Caption]]
    folds: list[int]

    @classmethod
    def of(
        cls, records: Sequence[Mapping[str, Any]], languages: Sequence[str], merge: bool = True, folds: int = 1
    ) -> "Pool":
        """Build a pool from records `{"id", "concept"?, "captions": {language: text or texts}}`.

        With `merge`, a caption that several pictures of one concept share, or that one has twice, is asked once. The same words
        under two concepts are two captions, each with its own right pictures (`identical` names them). The pictures are cut
        into `folds` equal parts, in order.
        Raises UserError for a language that captions no record, and for a concept in two folds.
        """
        concepts = _concepts(records)
        parts = [place * folds // len(records) for place in range(len(records))]
        _check_folds(concepts, parts)
        captions: dict[str, list[Caption]] = {}
        for language in languages:
            found: list[Caption] = []
            for record, concept in zip(records, concepts, strict=True):
                texts = record["captions"].get(language, [])
                for text in [texts] if isinstance(texts, str) else texts:
                    found.append(Caption(" ".join(text.split()), concept))  # as in shards
            if not found:
                known = ", ".join(sorted({name for record in records for name in record["captions"]}))
                raise UserError(
                    f"language {language!r}: none of the {len(records)} pictures has a caption in it. "
                    f"Choose among: {known}"
                )
            captions[language] = list(dict.fromkeys(found)) if merge else found
        return cls([str(record["id"]) for record in records], concepts, captions, parts)

    def right(self, language: str) -> NDArray[np.bool_]:
        """Return bool [N, C]: whether a picture is a right answer to a caption of `language`."""
        images, captions = self.groups(language)
        return images[:, None] == captions[None, :]

    def identical(self, language: str) -> list[tuple[str, list[str]]]:
        """Return the captions that several concepts have word for word, each with these concepts."""
        owners: dict[str, dict[str, None]] = {}
        for caption in self.captions[language]:
            owners.setdefault(caption.text, {})[caption.concept] = None
        return [(text, list(concepts)) for text, concepts in owners.items() if len(concepts) > 1]

    def in_order(self, ranks: Mapping[str, QueryRanks]) -> tuple["Pool", dict[str, QueryRanks]]:
        """Return pool and ranks by picture id and by (concept, caption): the same however the data was stored."""
        images = sorted(range(len(self.images)), key=self.images.__getitem__)
        captions, ordered = {}, {}
        for language, found in ranks.items():
            asked = self.captions[language]
            owned = [(caption.concept, caption.text) for caption in asked]
            places = sorted(range(len(asked)), key=owned.__getitem__)
            captions[language] = [asked[place] for place in places]
            ordered[language] = _reordered(found, places, images)
        pool = Pool(
            [self.images[place] for place in images],
            [self.concepts[place] for place in images],
            captions,
            [self.folds[place] for place in images],
        )
        return pool, ordered

    def parts(self, language: str) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return, for each fold, the numbers of its pictures and of its captions of `language`, in rising order."""
        fold_of = dict(zip(self.concepts, self.folds, strict=True))
        images = np.array(self.folds)
        captions = np.array([fold_of[caption.concept] for caption in self.captions[language]])
        return [(np.flatnonzero(images == fold), np.flatnonzero(captions == fold)) for fold in range(images.max() + 1)]

    def groups(self, language: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the concept number of each picture [N] and of each caption [C]; one numbering for all languages."""
        number = {concept: place for place, concept in enumerate(dict.fromkeys(self.concepts))}
        captions = [number[caption.concept] for caption in self.captions[language]]
        return np.array([number[concept] for concept in self.concepts]), np.array(captions, dtype=np.int64)


def _reordered(found: QueryRanks, captions: list[int], images: list[int]) -> QueryRanks:
    """Return the ranks with captions and pictures in the order of these numbers."""
    to_images, to_texts = found.text_to_image_ndcg, found.image_to_text_ndcg
    return QueryRanks(
        found.text_to_image[captions],
        found.image_to_text[images],
        None if to_images is None else to_images[captions],
        None if to_texts is None else to_texts[images],
    )


def _check_folds(concepts: Sequence[str], folds: Sequence[int]) -> None:
    """Raise UserError where pictures of one concept are in different folds: a right answer would not be in the pool."""
    seen: dict[str, int] = {}
    for concept, fold in zip(concepts, folds, strict=True):
        if seen.setdefault(concept, fold) != fold:
            raise UserError(
                f"concept {concept!r} has pictures in different folds, so that a caption would miss a right one; score by a "
                "protocol without folds, such as --protocol native"
            )


def _concepts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the concept of each record: its own, or its id; one that is another's concept too is marked as a picture's."""
    named = {str(record["concept"]) for record in records if record.get("concept")}
    ids = {str(record["id"]) for record in records}
    mark = "picture "
    while any(mark + name in named | ids for name in named & ids):
        mark += "picture "
    own = {name: mark + name if name in named else name for name in ids}
    return [str(record.get("concept") or own[str(record["id"])]) for record in records]
