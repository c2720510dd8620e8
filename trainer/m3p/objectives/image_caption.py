"""`image_caption`: a picture and its caption; masked words or regions, matching, contrastive (M3P's MC-* on plain pairs)."""

from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from m3p.batch import Picture
from m3p.data.sample import Sample
from m3p.data.tokenizer import BOS
from m3p.keys import keys_of, pick, splitmix64, uniform
from m3p.objectives.objective import Context, Ids, Objective, ObjectiveConfig, Part, Read, Text
from m3p.objectives.tasks.contrastive import ask_contrast
from m3p.objectives.tasks.masked_regions import RegionMask, ask_regions, mask_regions
from m3p.objectives.tasks.masked_words import ask_words, mask_words
from m3p.objectives.tasks.matching import ask_match
from m3p.packing import Packer


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


class Pairs(NamedTuple):
    """Texts and pictures that are seen together, column by column: of the samples themselves, or mismatched."""

    samples: list[Sample]
    """Whose they are: [N]."""
    owners: NDArray[np.uint64]
    """What their choices are keyed by: [N, 4]."""
    tokens: Ids
    """Of all texts, end to end: [W]."""
    lengths: Ids
    """Of each text: [N]."""
    pictures: list[Picture]
    """[N]"""


class Masked(NamedTuple):
    """What is left to be seen of pairs after masking."""

    tokens: Ids
    """[W]"""
    words: Ids
    """Places of the masked words in `tokens`: [K]."""
    regions: RegionMask
    """By the number of the pair."""


class ImageCaption(Objective):
    """A pair's text alone and picture alone (contrastive), its masked joint form, and a mismatched joint form."""

    config: ImageCaptionConfig
    needs_pictures = True

    def add(self, packer: Packer, part: Part, read: Read) -> None:
        """Pack pairs: all texts, all pictures, all joint forms, and all mismatches.

        The mismatched partner of a pair is the next one of the turn, whatever rank that one is on.
        """
        owners = np.array([sample.owner for sample in part.samples], np.uint64)
        pictures = [sample.picture for sample in part.samples]
        pairs = Pairs(part.samples, owners, part.tokens, part.lengths, pictures)
        if "contrastive" in self.tasks:
            self._ask_contrast(packer, np.array(part.positions) - part.turn.start, pairs)
        if self.tasks.keys() & {"masked_words", "masked_regions", "matching"}:
            self._add_joint(packer, pairs)
        if "matching" in self.tasks:
            others = self._mismatches(part, pairs, read)
            if others.samples:
                ask_match(packer, self._add_masked(packer, others, self.mask(others, "mismatch"))[0], False)

    def text(self, sample: Sample) -> Text:
        """The caption chosen."""
        return Text(self.choose(sample))

    def choose(self, sample: Sample) -> str:
        """Choose the caption: language and text each equally likely. The same whoever asks for it."""
        if len(sample.captions) == 1:
            (texts,) = sample.captions.values()
            if len(texts) == 1:
                return texts[0]
        draw = sample.draws("caption")
        return pick(sample.captions[pick(sorted(sample.captions), next(draw))], next(draw))

    def mask(self, pairs: Pairs, purpose: str) -> Masked:
        """Mask words or regions of each pair, never both, at a coin's toss; only words where no task asks for regions (and
        vice versa). Choices are keyed by the pair's sample and `purpose`.
        """
        words = self.tasks.get("masked_words", 0) > 0
        regions = self.tasks.get("masked_regions", 0) > 0
        if not pairs.samples or not (words or regions):
            return Masked(pairs.tokens, _NONE, _NO_REGIONS)
        keys = keys_of(pairs.owners, purpose)
        heads = uniform(splitmix64(keys)) < 0.5 if words and regions else np.full(len(keys), words)
        tokens, places = self._mask_words(pairs, keys, heads) if words else (pairs.tokens, _NONE)
        tails = (~heads).nonzero()[0]
        background = getattr(self.context.visual, "background", None)
        masked = mask_regions(
            [pairs.pictures[n] for n in tails.tolist()], keys[tails], self.config.mask_rate, background
        )
        return Masked(tokens, places, masked._replace(pictures=tails[masked.pictures]))

    def _mask_words(self, pairs: Pairs, keys: NDArray[np.uint64], heads: NDArray[np.bool_]) -> tuple[Ids, Ids]:
        """Return the words of all pairs with some hidden of those that have `heads` [N], and the places of the hidden."""
        tokens, places = mask_words(pairs.tokens, pairs.lengths, keys, self.config.mask_rate, self.context.tokenizer)
        of_heads = np.repeat(heads, pairs.lengths)
        return np.where(of_heads, tokens, pairs.tokens), places[of_heads[places]]

    def _ask_contrast(self, packer: Packer, rows: Ids, pairs: Pairs) -> None:
        texts, _ = packer.add_many(pairs.tokens, pairs.lengths)
        count = len(pairs.samples)
        images, _ = packer.add_many(np.full(count, BOS), np.ones(count, np.int64), pairs.pictures)
        # By the caption as it was written: two that were switched apart still say the same.
        captions = [self.choose(sample).casefold() for sample in pairs.samples]
        ask_contrast(packer, texts, images, rows, captions, [sample.concept for sample in pairs.samples])

    def _add_joint(self, packer: Packer, pairs: Pairs) -> None:
        """Pack the masked pairs, and ask for what they hide, and whether they match."""
        masked = self.mask(pairs, "mask")
        sequences, firsts = self._add_masked(packer, pairs, masked)
        if len(masked.words):
            starts: Ids = pairs.lengths.cumsum() - pairs.lengths
            slots = np.arange(len(pairs.tokens)) + np.repeat(firsts - starts, pairs.lengths)
            ask_words(packer, slots[masked.words], pairs.tokens[masked.words])
        slots = (firsts + pairs.lengths)[masked.regions.pictures] + masked.regions.places
        wanted = [(pairs.pictures[number], part.places) for number, part in masked.regions.by_picture()]
        ask_regions(packer, slots, wanted)
        if "matching" in self.tasks:
            ask_match(packer, sequences, True)

    def _add_masked(self, packer: Packer, pairs: Pairs, masked: Masked) -> tuple[range, Ids]:
        """Pack pairs as they are seen masked; return their sequences and the first slot of each [N]."""
        sequences, firsts = packer.add_many(masked.tokens, pairs.lengths, pairs.pictures)
        for number, (_, places, hidden) in masked.regions.by_picture():
            packer.hide(sequences[number], places[hidden], pairs.pictures[number])
        return sequences, firsts

    def _mismatches(self, part: Part, pairs: Pairs, read: Read) -> Pairs:
        """Return pairs with another's picture or another's caption; those that find no other are left out."""
        kept, texts, pictures = list[int](), list[Ids](), list[Picture]()
        others_picture = (uniform(keys_of(pairs.owners, "partner")) < 0.5).tolist()
        own = dict(zip(part.positions, np.split(pairs.tokens, pairs.lengths.cumsum()[:-1]), strict=True))
        for number, position in enumerate(part.positions):
            partner = _partner(part.turn, position, read)
            if partner is None:
                continue
            kept.append(number)
            if others_picture[number]:
                texts.append(own[position])
                pictures.append(read(partner).picture)
            else:
                texts.append(own[partner] if partner in own else self.encode([self.text(read(partner))])[0])
                pictures.append(pairs.pictures[number])
        lengths = np.array([len(text) for text in texts], np.int64)
        samples = [pairs.samples[number] for number in kept]
        return Pairs(samples, pairs.owners[kept], np.concatenate([_NONE, *texts]), lengths, pictures)


_NONE = np.zeros(0, np.int64)
_NO_REGIONS = RegionMask(_NONE, _NONE, np.zeros(0, np.bool_))


def _partner(turn: range, position: int, read: Read) -> int | None:
    """Return the next position of the turn (cyclically) with another concept and no caption in common; None if none of 8."""
    mine = read(position)
    for step in range(1, min(len(turn), 9)):
        partner = turn[(position - turn.start + step) % len(turn)]
        other = read(partner)
        if other.concept != mine.concept and _texts(other).isdisjoint(_texts(mine)):
            return partner
    return None


def _texts(sample: Sample) -> set[str]:
    return {text.casefold() for texts in sample.captions.values() for text in texts}
