"""`multilingual_text`: passages in many languages, masked words (M3P's xMLM)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from m3p.batch import Allocate, Batch, allocate_nothing
from m3p.data.order.plan import MicroBatch
from m3p.data.order.shuffle import Place
from m3p.data.sample import BadSamples
from m3p.data.source import Source
from m3p.data.storage.folders import LocalFolder
from m3p.data.tokenizer import Tokenizer
from m3p.keys import keys_of
from m3p.model.flops import Work
from m3p.objectives.objective import Context, Ids, Objective, ObjectiveConfig
from m3p.objectives.tasks.masked_words import MaskedWords, ask_words, mask_words
from m3p.packing import Packer
from m3p.visual.source import VisualSource

MEASURED = 32
"""Passages of a source by which the length of its tokens is known."""
LONGEST = 1 << 20
"""Tokens: none is cut away."""


class MultilingualTextConfig(ObjectiveConfig):
    """Fields of `objectives.multilingual_text`. One source a language; they share by temperature."""

    possible_tasks: ClassVar[tuple[str, ...]] = (MaskedWords.name,)

    tasks: dict[str, float] = Field({MaskedWords.name: 1.0}, description="Weight of each task in the loss.")
    max_tokens: int = Field(128, ge=4, description="Passages are cut to this many tokens.")
    mask_rate: float = Field(0.15, gt=0, lt=1, description="Chance of a piece to be masked.")

    def build(self, context: Context) -> "MultilingualText":
        """Return the objective."""
        return MultilingualText(self, context)

    def longest_sample(self, visual: VisualSource | None) -> Work:
        """Return the work of a passage of `max_tokens`."""
        length = self.max_tokens
        return Work(slots=length, squared_lengths=length**2, terms={MaskedWords.name: self.mask_rate * length})


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

    def batches(self, parts: Sequence[MicroBatch], allocate: Allocate = allocate_nothing) -> Iterator[Batch]:
        """As every objective's, but without a Python object for each passage."""
        found = self.mix.read_texts([position for part in parts for position in part.positions])
        tokens, lengths = self.context.tokenizer.encode_flat(found.texts, self.config.max_tokens)
        ends = [0, *lengths.cumsum().tolist()]
        first = 0
        for part in parts:
            packer, end = self.packer(allocate), first + len(part.positions)
            if part.positions:
                packer.names += found.names[first:end]
                for language, number in Counter(found.languages[first:end]).items():
                    packer.count(f"language/{language}", number)
                self.pack(packer, tokens[ends[first] : ends[end]], lengths[first:end], found.owners[first:end])
            batch = packer.finish(len(part.positions))
            batch.bad = [message for number, message in found.bad if first <= number < end]
            first = end
            yield batch

    def pack(self, packer: Packer, tokens: Ids, lengths: Ids, owners: NDArray[np.uint64]) -> None:
        """Pack passages end to end in `tokens` [W], of `lengths` [N] and `owners` [N, 4], with masked words."""
        keys = keys_of(owners, "mask")
        hidden, places = mask_words(tokens, lengths, keys, self.config.mask_rate, self.context.tokenizer)
        _, firsts = packer.add_many(hidden, lengths)
        ask_words(packer, firsts[0] + places, tokens[places])


def _bytes_of_token(source: Source, tokenizer: Tokenizer) -> float:
    """Measure it on the first passages of the source's first shard that has any: scripts differ by a factor of three."""
    shard = int((source.manifest.shards.samples > 0).argmax())
    count = min(MEASURED, int(source.manifest.shards.samples[shard]))
    texts = [source.read_place(Place(0, shard, number), BadSamples([]), augment=False).text for number in range(count)]
    return sum(len(text.encode()) for text in texts) / sum(len(tokenizer.encode(text, LONGEST)) for text in texts)
