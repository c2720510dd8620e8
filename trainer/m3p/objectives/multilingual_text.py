"""`multilingual_text`: passages in many languages, masked words (M3P's xMLM)."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from m3p.data.order.shuffle import Place
from m3p.data.sample import BadSamples
from m3p.data.samples import Samples
from m3p.data.source import Source
from m3p.data.storage.folders import LocalFolder
from m3p.data.tokenizer import Tokenizer
from m3p.keys import keys_of
from m3p.model.flops import Work
from m3p.objectives.objective import Context, Objective, ObjectiveConfig, Part, Read, Tokens
from m3p.objectives.tasks.masked_words import MaskedWords, ask_words, mask_words
from m3p.objectives.windows import WHOLE, take_windows
from m3p.packing import Packer
from m3p.visual.source import VisualSource

MEASURED = 32
"""Passages of a source that are read to measure how many bytes its tokens have."""


class MultilingualTextConfig(ObjectiveConfig):
    """Fields of `objectives.multilingual_text`. One source a language; they share by temperature."""

    possible_tasks: ClassVar[tuple[str, ...]] = (MaskedWords.name,)

    tasks: dict[str, float] = Field({MaskedWords.name: 1.0}, description="Weight of each task in the loss.")
    max_tokens: int = Field(
        128, ge=4, description="Tokens of a passage; of a longer one, each epoch shows another window."
    )
    mask_rate: float = Field(0.15, gt=0, lt=1, description="Chance of a piece to be masked.")

    def build(self, context: Context) -> "MultilingualText":
        """Return the objective."""
        return MultilingualText(self, context)

    def longest_sample(self, visual: VisualSource | None) -> Work:
        """Return the work of a passage of `max_tokens`."""
        length = self.max_tokens
        terms = {MaskedWords.name: self.mask_rate * length}
        return Work(length, length**2, length, length**2, terms=terms)


class MultilingualText(Objective):
    """One sequence a passage."""

    config: MultilingualTextConfig

    def __init__(self, config: MultilingualTextConfig, context: Context) -> None:
        super().__init__(config, context)
        for source in self.mix.sources:
            if isinstance(source.folder, LocalFolder):  # a remote shard is not fetched for this
                source.bytes_of_token = _bytes_of_token(source, context.tokenizer)

    def costs(self, positions: range) -> NDArray[np.float64]:
        """Return roughly how many tokens each passage has when it is cut: [N]."""
        return np.minimum(super().costs(positions), self.config.max_tokens)

    def tokenise(self, samples: Samples) -> Tokens:
        """Return the passages as tokens. One of more than `max_tokens` shows the window of its epoch (`windows.py`)."""
        whole, sizes = self.context.tokenizer.encode_flat(samples.records, WHOLE)
        ids, lengths, longer = take_windows(whole, sizes, samples.owners, self.config.max_tokens)
        return Tokens(ids, lengths, dict.fromkeys(longer, _LONGER))

    def add(self, packer: Packer, part: Part, read: Read) -> None:
        """Pack each passage as one sequence, with masked words."""
        for language, number in Counter(part.samples.languages).items():
            packer.count(f"language/{language}", number)
        keys = keys_of(part.samples.owners, "mask")
        tokenizer, rate = self.context.tokenizer, self.config.mask_rate
        hidden, places = mask_words(part.tokens, part.lengths, keys, rate, tokenizer)
        _, firsts = packer.add_many(hidden, part.lengths)
        ask_words(packer, firsts[0] + places, part.tokens[places])


_LONGER: Mapping[str, int] = MappingProxyType({"text/windows": 1})
"""Counts the passages that are longer than `max_tokens`, so that a window of them is shown."""


def _bytes_of_token(source: Source, tokenizer: Tokenizer) -> float:
    """Measure the bytes of a token on some passages of the source's first shard that has any: scripts differ threefold."""
    shard = int((source.manifest.shards.samples > 0).argmax())
    count = min(MEASURED, int(source.manifest.shards.samples[shard]))
    texts = [source.read_place(Place(0, shard, number), BadSamples([]), augment=False).text for number in range(count)]
    return sum(len(text.encode()) for text in texts) / sum(len(tokenizer.encode(text, WHOLE)) for text in texts)
