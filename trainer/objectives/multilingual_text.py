"""`multilingual_text`: passages in many languages, masked words (M3P's xMLM)."""

from typing import ClassVar

from pydantic import Field

from trainer.batch import Packer, Sequence
from trainer.data.sample import Sample
from trainer.objectives.objective import Context, Ids, Objective, ObjectiveConfig, Read
from trainer.objectives.tasks.masked_words import ask_words, mask_words


class MultilingualTextConfig(ObjectiveConfig):
    """Fields of `objectives.multilingual_text`. One source a language; they share by temperature."""

    possible_tasks: ClassVar[tuple[str, ...]] = ("masked_words",)

    tasks: dict[str, float] = Field({"masked_words": 1.0}, description="Weight of each task in the loss.")
    most_tokens: int = Field(128, ge=4, description="Passages are cut to this many tokens.")
    mask_rate: float = Field(0.15, gt=0, lt=1, description="Chance of a piece to be masked.")

    def build(self, context: Context) -> "MultilingualText":
        """Return the objective."""
        return MultilingualText(self, context)


class MultilingualText(Objective):
    """One sequence a passage."""

    config: MultilingualTextConfig

    def text(self, sample: Sample, packer: Packer | None) -> str:
        """The passage."""
        return sample.text

    def add(self, packer: Packer, turn: range, position: int, tokens: Ids, read: Read) -> None:
        """Pack one passage with masked words."""
        sample = read(position)
        hidden, places = mask_words(tokens, sample.generator("mask"), self.config.mask_rate, self.context.tokenizer)
        _, first = packer.add(Sequence(hidden))
        ask_words(packer, first, places, tokens)
        packer.count(f"language/{sample.language}", 1)
