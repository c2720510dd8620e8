"""The order of one source: position -> (epoch, shard, sample), computed, never stored.

An epoch is a keyed permutation of the shards, cut into windows of a few shards; the samples of a window are permuted
among themselves. So a reader touches few shards at a time, and any position is found from the counts alone. The idea
is that of grain and levanter (a position is an address, the state is one integer); window bounds follow shard bounds,
so that every epoch visits every sample exactly once whatever the sizes.

A permutation of n sorts n keyed hashes. A Feistel network finds one element without the others, but needs cycle-walking
(slow for small ranges) and many rounds (grain's four leave neighbours correlated). Here reads stay in a window anyway,
so its one sort, 0.7 ms for 40,000 samples where this was measured, is paid once for all of them. Hash and sort are
integer operations without ties: the order is the same on every machine and with every numpy, which
`Generator.permutation` does not promise.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from m3p import keys

ORDER_VERSION = 1
"""Goes into every checkpoint. Raise it when any position of any source moves (the frozen hash of the test says so)."""

EPOCHS_KEPT = 2
"""A micro-batch at the end of an epoch needs the next one too. At 100,000 shards one takes 0.6 MB."""

WINDOWS_KEPT = 4
"""Windows of 40,000 samples take 160 kB each; a sequential reader uses one, two at its edge."""

Value = TypeVar("Value")


class Place(NamedTuple):
    """Where one position lies."""

    epoch: int
    shard: int
    """Number of the shard in the manifest."""
    sample: int
    """Number of the sample in the shard."""


class Places(NamedTuple):
    """Where many positions lie: three int64 arrays of the shape of the positions."""

    epoch: NDArray[np.int64]
    shard: NDArray[np.int64]
    sample: NDArray[np.int64]

    def at(self, index: int) -> Place:
        """Return where the position at `index` of a list of them lies."""
        return Place(*(int(column[index]) for column in self))


@dataclass(frozen=True)
class _Epoch:
    shards: NDArray[np.uint32]
    """[n] shard numbers in the order of this epoch."""
    ends: NDArray[np.int64]
    """[windows] samples up to and including each window."""


@dataclass(frozen=True)
class _Window:
    start: int
    """Samples of the epoch before this window."""
    order: NDArray[np.uint32]
    """[size] the samples of the window, numbered through its shards, in the order of reading."""
    shards: NDArray[np.int64]
    """[k] shard numbers."""
    ends: NDArray[np.int64]
    """[k] samples up to and including each shard."""


class _Recent(Generic[Value]):
    """The values of the last few keys. Unlike `functools.lru_cache`, it goes with its owner to a spawned worker."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[tuple[int, ...], Value] = OrderedDict()

    def get(self, name: tuple[int, ...], compute: Callable[..., Value]) -> Value:
        if name in self._values:
            self._values.move_to_end(name)
            return self._values[name]
        value = self._values[name] = compute(*name)
        if len(self._values) > self._size:
            self._values.popitem(last=False)
        return value


class SourceOrder:
    """The endless order of one source.

    Args:
        counts: samples of each shard, in the order of the manifest; a shard may be empty, the source may not.
        window: shards of a window.
        key: names this order; `m3p.keys.key(seed, purpose, source)`, never a sum.
    """

    def __init__(self, counts: Sequence[int] | NDArray[np.int64], window: int, key: int) -> None:
        self._counts = np.asarray(counts, np.int64)
        self.samples = int(self._counts.sum())
        """Samples of one epoch."""
        assert self._counts.ndim == 1, self._counts.shape
        assert self.samples > 0, "an empty source has no order"
        assert self._counts.min() >= 0, "a shard cannot hold fewer than 0 samples"
        assert window >= 1, window
        self._window = window
        self._key = key
        self._epochs: _Recent[_Epoch] = _Recent(EPOCHS_KEPT)
        self._windows: _Recent[_Window] = _Recent(WINDOWS_KEPT)

    def place(self, position: int) -> Place:
        """Return the place of one position, 0 or more; it costs the same for any position."""
        assert position >= 0, position
        epoch, offset = divmod(position, self.samples)
        number = int(self._epoch(epoch).ends.searchsorted(offset, "right"))
        window = self._windows.get((epoch, number), self._make_window)
        sample = int(window.order[offset - window.start])
        shard = int(window.ends.searchsorted(sample, "right"))
        before = int(window.ends[shard - 1]) if shard else 0
        return Place(epoch, int(window.shards[shard]), sample - before)

    def shards(self, position: int) -> tuple[list[int], list[int]]:
        """Return the shards of the window of `position`, and those of the window after it."""
        epoch, offset = divmod(position, self.samples)
        now = self._epoch(epoch)
        number = int(now.ends.searchsorted(offset, "right"))
        last = number + 1 == len(now.ends)
        after = self._epoch(epoch + 1).shards[: self._window] if last else now.shards[(number + 1) * self._window :]
        mine = now.shards[number * self._window : (number + 1) * self._window]
        return mine.tolist(), after[: self._window].tolist()

    def locate(self, positions: NDArray[np.int64]) -> Places:
        """Return the places of `positions` [N], 0 or more, in any order; sorted ones touch each window once."""
        positions = np.asarray(positions, np.int64)
        assert positions.size == 0 or positions.min() >= 0, "positions start at 0"
        if found := self._in_one_window(positions):
            return found
        epochs, offsets = np.divmod(positions, self.samples)
        shards, samples = np.empty_like(positions), np.empty_like(positions)
        for epoch, of_epoch in groups(epochs):
            windows = self._epoch(epoch).ends.searchsorted(offsets[of_epoch], "right")
            for number, of_window in groups(windows):
                chosen = of_epoch[of_window]
                window = self._windows.get((epoch, number), self._make_window)
                sample = window.order[offsets[chosen] - window.start].astype(np.int64)
                shard = window.ends.searchsorted(sample, "right")
                shards[chosen] = window.shards[shard]
                samples[chosen] = sample - np.concatenate([[0], window.ends])[shard]
        return Places(epochs, shards, samples)

    def _in_one_window(self, positions: NDArray[np.int64]) -> Places | None:
        """Return the places of positions that rise and lie in one window, as nearly all that are asked for do; else None."""
        if not len(positions) or (positions[1:] < positions[:-1]).any():
            return None
        epoch, first = divmod(int(positions[0]), self.samples)
        last = int(positions[-1]) - epoch * self.samples
        ends = self._epoch(epoch).ends
        number = int(ends.searchsorted(first, "right"))
        if last >= ends[number]:
            return None
        window = self._windows.get((epoch, number), self._make_window)
        sample = window.order[positions - (epoch * self.samples + window.start)].astype(np.int64)
        shard = window.ends.searchsorted(sample, "right")
        starts = window.ends - self._counts[window.shards]
        return Places(np.full(len(positions), epoch), window.shards[shard], sample - starts[shard])

    def _epoch(self, epoch: int) -> _Epoch:
        return self._epochs.get((epoch,), self._make_epoch)

    def _make_epoch(self, epoch: int) -> _Epoch:
        shards = permutation(len(self._counts), keys.key(self._key, "shards", epoch))
        firsts = np.arange(0, len(shards), self._window)
        return _Epoch(shards, np.add.reduceat(self._counts[shards], firsts).cumsum())

    def _make_window(self, epoch: int, number: int) -> _Window:
        order = self._epoch(epoch)
        shards = order.shards[number * self._window : (number + 1) * self._window].astype(np.int64)
        ends = self._counts[shards].cumsum()
        size = int(ends[-1])
        samples = permutation(size, keys.key(self._key, "window", epoch, number))
        return _Window(int(order.ends[number]) - size, samples, shards, ends)


def groups(values: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each value that occurs in `values` [N], 0 or more, in rising order, with the indices where it stands."""
    order = values.argsort(kind="stable")
    rising = values[order]
    firsts = np.flatnonzero(np.diff(rising, prepend=-1)).tolist()
    for first, end in pairwise([*firsts, len(values)]):
        yield int(rising[first]), order[first:end]


def permutation(size: int, key: int) -> NDArray[np.uint32]:
    """Return a permutation of 0..size-1 [size] that is a function of `size` and the 64-bit `key` alone.

    Each index is hashed with the key; the index itself takes the place of the hash's lowest bits, so that no two
    values tie and a plain sort, faster than an argsort, gives the same order whatever algorithm numpy sorts by.
    """
    assert 0 < size <= 1 << 32, size
    bits = np.uint64((size - 1).bit_length())
    index = np.arange(size, dtype=np.uint64)
    # Twice mixed: with one mixing the sequences of two keys could be the same one, shifted.
    values = keys.splitmix64(keys.splitmix64(index) ^ np.uint64(key))
    values >>= bits
    values <<= bits
    values |= index
    values.sort()
    values &= (np.uint64(1) << bits) - np.uint64(1)
    return values.astype(np.uint32)
