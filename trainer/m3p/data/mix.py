"""A mix: the sources of one objective, read by position."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from m3p.data.loader.picture_buffer import PictureMemory
from m3p.data.loader.threads import share
from m3p.data.order.mixture import MixtureOrder, temperature_weights
from m3p.data.sample import BadSamples, Sample
from m3p.data.samples import Samples, join
from m3p.data.source import Source
from m3p.errors import BadSample


class Mix:
    """The sources of one objective. A position stands for a source and an index in its order, by exact shares, without state."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float | None], temperature: float) -> None:
        self.sources = list(sources)
        given = [weight for weight in weights if weight is not None]
        sizes = [source.manifest.samples for source in sources]
        self.weights = given if len(given) == len(sizes) else temperature_weights(sizes, temperature)
        self._shares = MixtureOrder(self.weights)
        self._by_key = {source.key: source for source in self.sources}

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

    def read_many(self, positions: Sequence[int]) -> Samples:
        """Return the samples at `positions` [N], in that order, but for their pictures, which `decode` reads.

        Bad samples are replaced by the next good one of their source, and noted in the result's `bad`.
        """
        return join([(mine, source.read_many(indices)) for source, mine, indices in self._by_source(positions)])

    def decode(self, samples: Samples, into: Sequence[PictureMemory | None] = ()) -> bool:
        """Decode the pictures of `samples` [N] into `into` [N]; this thread shares the work with others (`set_threads`).

        A sample with a bad picture is replaced in `samples`, as by `read_many`. Returns whether one was.
        """
        if not samples.members:
            return False  # they have no pictures
        into, failed = into or [None] * len(samples), dict[int, BadSample]()
        every = list(samples)

        def work(part: range) -> None:
            for number in part:
                sample = every[number]
                if sample.visual is not None:  # it was decoded when it replaced a bad one
                    continue
                try:
                    self._source_of(sample.owner).decode(sample, samples.members[number], into[number])
                except BadSample as reason:
                    failed[number] = reason

        share(work, len(samples))
        for number in sorted(failed):
            self._source_of(every[number].owner).replace(samples, number, failed[number])
        return bool(failed)

    def _source_of(self, owner: tuple[int, ...]) -> Source:
        """Return the source of the sample with this `owner`."""
        return self._by_key[owner[0]]

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
