"""Random mismatched partners: other pairs of the turn that a pair's caption or picture can be swapped with."""

import numpy as np

from m3p.data.sample import Sample
from m3p.objectives.objective import Ids, Read

MAX_TRIED = 8
"""Other pairs of a turn that are looked at to find one mismatched partner; for each further one, one more."""


class Candidates:
    """The positions of a turn that may be mismatched partners of each of them.

    They are those of its own source, from the next one on, cyclically. Only where its source has no other position in the turn
    are they those of other sources.

    Args:
        sources: number of the source at each position of the turn.
        start: the first position of the turn.
    """

    def __init__(self, sources: Ids, start: int) -> None:
        self._sources, self._start = sources, start
        order = np.argsort(sources, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(sources[order])) + 1)
        self._own = {int(sources[group[0]]): group for group in groups if len(group)}

    def of(self, position: int, limit: int = MAX_TRIED) -> Ids:
        """Return up to `limit` candidates for the sample at `position`, in the order in which they are tried."""
        place = position - self._start
        every = self._own[int(self._sources[place])]
        if len(every) == 1:
            every = np.arange(len(self._sources))
        after = int(np.searchsorted(every, place)) + 1
        count = min(len(every) - 1, limit)
        return self._start + every[(after + np.arange(count)) % len(every)]


def find_partners(candidates: Candidates, position: int, read: Read, count: int) -> list[int]:
    """Return the first `count` candidates with another picture and no caption in common; fewer where there are no more."""
    mine, found = read(position), list[int]()
    for partner in candidates.of(position, MAX_TRIED + count - 1).tolist():
        other = read(partner)
        if not other.has_same_picture(mine) and captions_of(other).isdisjoint(captions_of(mine)):
            found.append(int(partner))
            if len(found) == count:
                break
    return found


def captions_of(sample: Sample) -> set[str]:
    """Return all captions of a pair, in all its languages, without regard to case."""
    return {text.casefold() for texts in sample.captions.values() for text in texts}
