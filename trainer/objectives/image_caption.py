"""`image_caption`: a picture and its caption; masked words or regions, matching, contrastive (M3P's MC-* on plain pairs)."""

from collections.abc import Sequence as Sequences
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainer.batch import Packer, Picture, Sequence
from trainer.data.sample import Sample
from trainer.data.tokenizer import BOS
from trainer.keys import keys_of, mix, uniform
from trainer.objectives.objective import Context, Ids, Objective, ObjectiveConfig, Read, Text
from trainer.objectives.tasks.contrastive import ask_contrast
from trainer.objectives.tasks.masked_regions import ask_regions, mask_regions
from trainer.objectives.tasks.masked_words import ask_words, mask_words
from trainer.objectives.tasks.matching import ask_match


class ImageCaptionConfig(ObjectiveConfig):
    """Fields of `objectives.image_caption`."""

    possible_tasks: ClassVar[tuple[str, ...]] = ("masked_words", "masked_regions", "matching", "contrastive")

    tasks: dict[str, float] = Field(
        {"masked_words": 1.0, "masked_regions": 1.0, "matching": 1.0, "contrastive": 1.0},
        description="Weight of each task in the loss; 0 leaves it out.",
    )
    mask_rate: float = Field(0.15, gt=0, lt=1, description="Chance of a piece or region to be masked.")

    def build(self, context: Context) -> "ImageCaption":
        """Return the objective."""
        return ImageCaption(self, context)


class Pair(NamedTuple):
    """A text and a picture that are seen together; the sample's own, or a mismatch."""

    sample: Sample
    """Whose it is: choices are keyed by it."""
    tokens: Ids
    visual: Picture


class Masked(NamedTuple):
    """A pair after masking."""

    tokens: Ids
    visual: Picture
    words: Ids
    """Places of the masked words in `tokens`."""
    regions: Ids
    """Numbers of the masked regions."""


class ImageCaption(Objective):
    """A pair's text alone and picture alone (contrastive), its masked joint form, and a mismatched joint form."""

    config: ImageCaptionConfig
    needs_pictures = True

    def add(self, packer: Packer, turn: range, positions: Sequences[int], tokens: Sequences[Ids], read: Read) -> None:
        """Pack pairs. The mismatched partner of one is the next one of the turn, whatever rank that one is on."""
        pairs = [
            Pair(read(position), of_text, _picture(read(position)))
            for position, of_text in zip(positions, tokens, strict=True)
        ]
        joint = self.tasks.keys() & {"masked_words", "masked_regions", "matching"}
        masked = self.mask(pairs, "mask") if joint else []
        others = self._mismatches(turn, positions, pairs, read) if "matching" in self.tasks else {}
        masked_others = dict(zip(others, self.mask(list(others.values()), "mismatch"), strict=True))
        for number, (position, pair) in enumerate(zip(positions, pairs, strict=True)):
            if "contrastive" in self.tasks:
                self._ask_contrast(packer, position - turn.start, pair)
            if joint:
                sequence = self._add_joint(packer, masked[number], pair)
                if "matching" in self.tasks:
                    ask_match(packer, sequence, True)
            if number in masked_others:
                other = masked_others[number]
                ask_match(packer, packer.add(Sequence(other.tokens, other.visual))[0], False)

    def text(self, sample: Sample) -> Text:
        """The caption chosen."""
        return Text(self.choose(sample))

    def choose(self, sample: Sample) -> str:
        """Choose the caption: language and text each equally likely. The same whoever asks for it."""
        if len(sample.captions) == 1:
            (texts,) = sample.captions.values()
            if len(texts) == 1:
                return texts[0]  # a generator costs as much as reading the pair
        rng, languages = sample.generator("caption"), sorted(sample.captions)
        texts = sample.captions[languages[rng.integers(len(languages))]]
        return texts[rng.integers(len(texts))]

    def mask(self, pairs: Sequences[Pair], purpose: str) -> list[Masked]:
        """Mask words or regions of each pair, never both, at a coin's toss; only words where no task asks for regions (and
        vice versa). Choices are keyed by the pair's sample and `purpose`.
        """
        words = self.tasks.get("masked_words", 0) > 0
        regions = self.tasks.get("masked_regions", 0) > 0
        if not pairs or not (words or regions):
            return [Masked(pair.tokens, pair.visual, _NONE, _NONE) for pair in pairs]
        keys = keys_of(np.array([pair.sample.owner for pair in pairs], np.uint64), purpose)
        heads = (uniform(mix(keys)) < 0.5).tolist() if words and regions else [words] * len(pairs)
        hidden = self._mask_words(pairs, keys) if words else []
        return [
            Masked(hidden[number][0], pair.visual, hidden[number][1], _NONE)
            if heads[number]
            else self._mask_regions(pair, purpose)
            for number, pair in enumerate(pairs)
        ]

    def _mask_words(self, pairs: Sequences[Pair], keys: NDArray[np.uint64]) -> list[tuple[Ids, Ids]]:
        """Return the words of each pair with some hidden, and the places of those."""
        lengths = np.array([len(pair.tokens) for pair in pairs])
        ends = lengths.cumsum()
        tokens = np.concatenate([pair.tokens for pair in pairs])
        hidden, places = mask_words(tokens, lengths, keys, self.config.mask_rate, self.context.tokenizer)
        of_pairs = places.searchsorted(ends)
        places -= np.repeat(ends - lengths, np.diff(of_pairs, prepend=0))
        return list(zip(_split(hidden, ends), _split(places, of_pairs), strict=True))

    def _mask_regions(self, pair: Pair, purpose: str) -> Masked:
        background = getattr(self.context.visual, "background", None)
        seen, places = mask_regions(pair.visual, pair.sample.generator(purpose), self.config.mask_rate, background)
        return Masked(pair.tokens, seen, _NONE, places)

    def _ask_contrast(self, packer: Packer, row: int, pair: Pair) -> None:
        text, _ = packer.add(Sequence(pair.tokens))
        image, _ = packer.add(Sequence(_START, pair.visual))
        # By the caption as it was written: two that were switched apart still say the same.
        ask_contrast(packer, text, image, row, self.choose(pair.sample).casefold(), pair.sample.concept)

    def _add_joint(self, packer: Packer, masked: Masked, pair: Pair) -> int:
        """Pack the masked pair, and ask for what it hides; return its sequence."""
        number, first = packer.add(Sequence(masked.tokens, masked.visual))
        if len(masked.words):
            ask_words(packer, first, masked.words, pair.tokens)
        if len(masked.regions):
            ask_regions(packer, first + len(pair.tokens), masked.regions, pair.visual)
        return number

    def _mismatches(
        self, turn: range, positions: Sequences[int], pairs: Sequences[Pair], read: Read
    ) -> dict[int, Pair]:
        """Give each pair another's picture or another's caption; those that find no other are left out: number -> pair."""
        found: dict[int, Pair] = {}
        for number, (position, pair) in enumerate(zip(positions, pairs, strict=True)):
            other = _partner(turn, position, read)
            if other is None:
                continue
            if pair.sample.generator("partner").random() < 0.5:
                found[number] = pair._replace(visual=_picture(other))
            else:
                found[number] = pair._replace(tokens=self._encode([self.text(other)])[0])
        return found


_NONE = np.zeros(0, np.int64)
_START = np.array([BOS], np.int64)


def _split(values: Ids, ends: Ids) -> list[Ids]:
    """Cut `values` [W] at `ends` [N], the last of which is W."""
    return [values[start:end] for start, end in pairwise([0, *ends.tolist()])]


def _partner(turn: range, position: int, read: Read) -> Sample | None:
    """Return the next sample of the turn (cyclically) with another concept and no caption in common; None if none of 8."""
    mine = read(position)
    for step in range(1, min(len(turn), 9)):
        other = read(turn[(position - turn.start + step) % len(turn)])
        if other.concept != mine.concept and _texts(other).isdisjoint(_texts(mine)):
            return other
    return None


def _texts(sample: Sample) -> set[str]:
    return {text.casefold() for texts in sample.captions.values() for text in texts}


def _picture(sample: Sample) -> Picture:
    assert sample.visual is not None, "sources of pairs load pictures"
    return sample.visual
