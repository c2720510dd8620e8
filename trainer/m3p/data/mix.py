"""A mix: the sources of one objective, read by position."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from m3p.data.loader.picture_buffer import PictureSlot
from m3p.data.order.mixture import MixtureOrder, temperature_weights
from m3p.data.sample import BadSamples, Sample, Texts
from m3p.data.source import Drawn, Source
from m3p.errors import BadSample

Item = TypeVar("Item")


class Draw(NamedTuple):
    """Samples of a mix, read but for their pictures."""

    positions: Sequence[int]
    samples: list[Sample | BadSample]
    """In the order of the positions."""
    parts: list[tuple[Source, list[int], Drawn]]
    """Each source in use, where its samples stand among all, and what it has read."""


class Mix:
    """The sources of one objective. Position -> source and index in it, by exact shares without state."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float | None], temperature: float) -> None:
        self.sources = list(sources)
        given = [weight for weight in weights if weight is not None]
        sizes = [source.manifest.samples for source in sources]
        self.weights = given if len(given) == len(sizes) else temperature_weights(sizes, temperature)
        self._shares = MixtureOrder(self.weights)

    def read(self, position: int, bad: BadSamples) -> Sample:
        """Return the sample at `position` of the objective's endless order."""
        source, index = self._shares.place(position)
        return self.sources[source].read(index, bad)

    def source_numbers(self, positions: Sequence[int]) -> NDArray[np.int64]:
        """Return the number, in `sources`, of the source that each of `positions` [N] comes from: [N]."""
        return self._shares.locate(np.array(positions, np.int64))[0]

    def source(self, position: int) -> Source:
        """Return the source that the sample at `position` comes from."""
        return self.sources[self._shares.place(position).source]

    def draw(self, positions: Sequence[int]) -> "Draw":
        """Read the samples at `positions`, source by source, but for their pictures."""
        parts = [(source, mine.tolist(), source.draw(indices)) for source, mine, indices in self._by_source(positions)]
        return Draw(positions, _merge([(places, drawn.samples) for _, places, drawn in parts]), parts)

    def decode(self, draw: "Draw", bad: BadSamples, slots: Sequence[PictureSlot | None]) -> list[Sample]:
        """Return the samples in the order of the positions, pictures decoded into `slots`; bad ones are replaced.

        Each bad sample is noted in `bad`.
        """
        return _merge(
            [
                (places, source.decode(drawn, bad, [slots[place] for place in places]))
                for source, places, drawn in draw.parts
            ]
        )

    def read_texts(self, positions: Sequence[int]) -> Texts:
        """Return the passages at `positions` [N], in that order."""
        parts = [(mine, source.read_texts(indices)) for source, mine, indices in self._by_source(positions)]
        if len(parts) == 1:
            return parts[0][1]
        count = len(positions)
        found = Texts([""] * count, [""] * count, [""] * count, np.zeros((count, 4), np.uint64), [])
        for mine, part in parts:
            places = mine.tolist()
            found.owners[mine] = part.owners
            for place, text, name, language in zip(places, part.texts, part.names, part.languages, strict=True):
                found.texts[place], found.names[place], found.languages[place] = text, name, language
            found.bad.extend((places[number], message) for number, message in part.bad)
        found.bad.sort(key=lambda one: one[0])
        return found

    def lengths(self, positions: Sequence[int]) -> NDArray[np.float64]:
        """Return roughly how many tokens the samples at `positions` [N] have: [N]. Nothing but index files is read."""
        found = np.empty(len(positions))
        for source, mine, indices in self._by_source(positions):
            found[mine] = source.lengths(indices)
        return found

    def _by_source(self, positions: Sequence[int]) -> Iterator[tuple[Source, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield each source in use, where its samples stand in `positions`, and their indices in its order."""
        if len(self.sources) == 1 and len(positions):
            yield self.sources[0], np.arange(len(positions)), np.array(positions, np.int64)
            return
        sources, indices = self._shares.locate(np.array(positions, np.int64))
        for number in np.unique(sources).tolist():
            mine = (sources == number).nonzero()[0]
            yield self.sources[number], mine, indices[mine]


def _merge(parts: Sequence[tuple[list[int], list[Item]]]) -> list[Item]:
    """Return the items of all parts in the order of their places, 0, 1, ..., which each part names in rising order."""
    if len(parts) == 1:
        return parts[0][1]
    found = {place: item for places, items in parts for place, item in zip(places, items, strict=True)}
    return [found[place] for place in range(len(found))]
