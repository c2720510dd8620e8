"""`image_caption`: a picture and its caption; masked words or regions, matching, contrastive (M3P's MC-* on plain pairs)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from trainer.batch import Packer, Picture, Sequence
from trainer.data.sample import Sample
from trainer.data.tokenizer import BOS
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


@dataclass(frozen=True)
class Masked:
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

    def add(self, packer: Packer, turn: range, position: int, tokens: Ids, read: Read) -> None:
        """Pack one pair. Its mismatched partner is the next one of the turn, whatever rank that one is on."""
        sample = read(position)
        visual = _picture(sample)
        if "contrastive" in self.tasks:
            text, _ = packer.add(Sequence(tokens))
            image, _ = packer.add(Sequence(np.array([BOS], np.int64), visual))
            # By the caption as it was written: two that were switched apart still say the same.
            ask_contrast(packer, text, image, position - turn.start, self.choose(sample).casefold(), sample.concept)
        if self.tasks.keys() & {"masked_words", "masked_regions", "matching"}:
            masked = self.mask(tokens, visual, sample.generator("mask"))
            joint = self._add_joint(packer, masked, tokens, visual)
            if "matching" in self.tasks:
                ask_match(packer, joint, True)
                self._add_mismatch(packer, turn, position, read, tokens)

    def text(self, sample: Sample) -> Text:
        """The caption chosen."""
        return Text(self.choose(sample))

    def choose(self, sample: Sample) -> str:
        """Choose the caption: language and text each equally likely. The same whoever asks for it."""
        languages = sorted(sample.captions)
        if len(languages) == len(sample.captions[languages[0]]) == 1:
            return sample.captions[languages[0]][0]  # a generator costs as much as reading the pair
        rng = sample.generator("caption")
        texts = sample.captions[languages[rng.integers(len(languages))]]
        return texts[rng.integers(len(texts))]

    def mask(self, tokens: Ids, visual: Picture, rng: np.random.Generator) -> Masked:
        """Mask words or regions, never both, at a coin's toss; only words where no task asks for regions (and vice versa)."""
        words = self.tasks.get("masked_words", 0) > 0
        regions = self.tasks.get("masked_regions", 0) > 0
        none = np.zeros(0, np.int64)
        heads = rng.random() < 0.5
        if words and (heads or not regions):
            hidden, places = mask_words(tokens, rng, self.config.mask_rate, self.context.tokenizer)
            return Masked(hidden, visual, places, none)
        if regions:
            background = getattr(self.context.visual, "background", None)
            seen, places = mask_regions(visual, rng, self.config.mask_rate, background)
            return Masked(tokens, seen, none, places)
        return Masked(tokens, visual, none, none)

    def _add_joint(self, packer: Packer, masked: Masked, tokens: Ids, visual: Picture) -> int:
        """Pack the masked pair, and ask for what it hides; return its sequence."""
        number, first = packer.add(Sequence(masked.tokens, masked.visual))
        if len(masked.words):
            ask_words(packer, first, masked.words, tokens)
        if len(masked.regions):
            ask_regions(packer, first + len(tokens), masked.regions, visual)
        return number

    def _add_mismatch(self, packer: Packer, turn: range, position: int, read: Read, tokens: Ids) -> None:
        """Pack the pair with another's picture or another's caption, masked alike; its labels are dropped."""
        sample = read(position)
        other = _partner(turn, position, read)
        if other is None:
            return
        rng = sample.generator("mismatch")
        visual = _picture(sample)
        if rng.random() < 0.5:
            visual = _picture(other)
        else:
            tokens = self.context.tokenizer.encode(self.text(other).text, self.config.most_tokens)
        masked = self.mask(tokens, visual, rng)
        number, _ = packer.add(Sequence(masked.tokens, masked.visual))
        ask_match(packer, number, False)


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
