"""Reads samples of shards by offset: one `pread` a sample, file descriptors bounded.

A sample of the usual files is cut at the places that the index knows, once their headers have shown to be what they were;
any other is parsed.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from m3p.data.order.shuffle import groups
from m3p.data.records import Members
from m3p.data.shards.fingerprint import content_name, has_moved
from m3p.data.shards.index_file import IndexFile, index_faults, open_index
from m3p.data.shards.sample_members import members
from m3p.data.shards.shard_table import Shard
from m3p.data.shards.side_captions import SideCaptions, side_path
from m3p.data.shards.tar import BLOCK, head_sum, head_sums
from m3p.data.storage.file_map import FileMap
from m3p.data.storage.folders import Folder
from m3p.errors import BadSample, OneRankError

MAX_OPEN = 128
"""Shards that a process keeps open, over all its sources. Each takes up to three file descriptors, of which 1,024 are usual."""

MAX_LOST = 3
"""Times that a shard may be deleted from the cache between fetching and opening it, before that is an error."""


WAY_OUT = "run `m3p index` again, or copy the shard and its index again; if that was done meanwhile, start again"
"""For a shard that is not what the manifest said when the run began."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class _Opened:
    descriptor: int
    index: IndexFile
    side: SideCaptions | None = None
    """The captions beside the shard, in place of those in it."""

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """[samples + 1] where each sample begins in the tar, and where the last one ends."""
        return np.frombuffer(self.index.offsets, np.int64)

    @cached_property
    def _heads(self) -> tuple[memoryview, memoryview]:
        """The index's `lengths` and `sums`, flat, row by row: an item of a memoryview is a plain number, found faster."""
        return self.index.lengths.ravel().data, self.index.sums.ravel().data

    def content(self) -> FileMap | None:
        """Return the tar, mapped into memory; None where `views` has no use for it, or it is shorter than its index says."""
        if len(self.index.extensions) != 1 or not self.index.offsets[-1] or self.side is not None:
            return None
        try:
            return self._map if self._map.is_whole() else None
        except ValueError:  # it was shorter before it could be mapped
            return None

    @cached_property
    def _map(self) -> FileMap:
        return FileMap(self.descriptor, self.index.offsets[-1])

    def read(self, sample: int) -> Members:
        """Return a sample's members by extension, views of the one piece that is read. Raises BadSample."""
        first, size = self.index.offsets[sample], self.index.offsets[sample + 1] - self.index.offsets[sample]
        span = os.pread(self.descriptor, size, first)
        if len(span) != size:
            raise BadSample(
                f"the shard ends at byte {first + len(span)}, inside the sample (truncated since it was indexed)"
            )
        stored = self._cut(sample, span)
        return stored if self.side is None else self.side.over(sample, stored)

    def close(self) -> None:
        """Close its files."""
        os.close(self.descriptor)
        if self.side is not None:
            self.side.close()

    def _cut(self, sample: int, span: bytes) -> Members:
        extensions, (lengths, sums) = self.index.extensions, self._heads
        found: dict[str, memoryview] = {}
        view, end = memoryview(span), 0
        for number, extension in enumerate(extensions, sample * len(extensions)):
            start = end + BLOCK
            if head_sum(view[end:start]) != sums[number]:
                break
            length = lengths[number]
            found[extension] = view[start : start + length]
            end = start + (length + BLOCK - 1) // BLOCK * BLOCK
        return found if end == len(span) else members(span)

    def views(self, content: memoryview, samples: NDArray[np.int64]) -> tuple[Iterator[memoryview], NDArray[np.bool_]]:
        """Return views of `content`, the tar, of `samples` [N] that are one file each; and which are left for `read`: [N].

        Left are samples of several files, and those that do not look as the index says, right or wrong. For small files: of a
        sample alone, one call to the system costs more than all that is done here.
        """
        firsts, lengths = self.offsets[samples], self.index.lengths[samples, 0].astype(np.int64)
        blocks = np.frombuffer(content, np.uint8, len(content) // BLOCK * BLOCK).reshape(-1, BLOCK)
        heads = blocks.take(firsts // BLOCK, 0, mode="clip")  # a wrong index gives another header
        same = head_sums(heads) == self.index.sums[samples, 0]
        begins, ends = firsts + BLOCK, firsts + BLOCK + lengths
        same &= (firsts % BLOCK == 0) & (self.offsets[samples + 1] == -(-ends // BLOCK) * BLOCK)
        return map(content.__getitem__, map(slice, begins[same].tolist(), ends[same].tolist())), ~same


class _DamagedShardError(OneRankError):
    """A shard or its index is damaged, or is not what the manifest says."""


_open: "OrderedDict[tuple[ShardReader, int], _Opened]" = OrderedDict()
"""The open shards of this process, the one read last at the end. They are global, not in each reader: a hundred languages share
the bound, and a reader that is sent to another process leaves its descriptors behind."""


class ShardReader:
    """The shards of one source, opened when first read."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._shards = folder, folder.manifest.shards

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        """Return the members of a sample by extension, `json`, `jpg`, ...

        Raises BadSample where the shard ends before, or the bytes are no tar.
        """
        return {extension: bytes(content) for extension, content in self._shard(shard).read(sample).items()}

    def read_many(
        self, shards: NDArray[np.int64], samples: NDArray[np.int64], make: Callable[[Members], Made]
    ) -> tuple[list[Made | None], dict[int, BadSample]]:
        """Return what `make` makes of the members of each of `samples` [N] of `shards` [N].

        Returns [N] results, None for bad samples; and, by number in 0..N-1, what `read` or `make` raised for those. `make` is
        called in any order. Where the samples of a shard are one file each, as texts are, it gets a view of the shard and no
        copy: it must not keep that, since to read it once the shard has been cut short ends the process (SIGBUS). (Thousands of
        views that live at once would also have Python look for garbage among them, again and again.)
        """
        found: list[Made | None] = [None] * len(shards)
        bad: dict[int, BadSample] = {}
        # Shard by shard: not all that are asked for may be open at once.
        for shard, mine in groups(shards):
            opened = self._shard(shard)
            left = _make_mapped(opened, mine, samples[mine], make, found, bad)
            for place, sample in zip(mine[left].tolist(), samples[mine[left]].tolist(), strict=True):
                try:
                    found[place] = make(opened.read(sample))
                except BadSample as reason:
                    found[place], bad[place] = None, reason
        return found, bad

    def sizes(self, shard: int, samples: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the bytes of the texts or region features of `samples` [N] of a shard, without reading them: [N]."""
        return self._shard(shard).index.sizes[samples]

    def picture(self, shard: int, sample: int) -> str:
        """Return the name that a sample's picture has in all sources, by its content; "" where the index does not know it."""
        contents = self._shard(shard).index.contents
        return content_name(contents[sample]) if contents and contents[sample] else ""

    def pictures(self, shards: NDArray[np.int64], samples: NDArray[np.int64]) -> list[str]:
        """Return `picture` of each of `samples` [N] of `shards` [N]; each shard is looked up once."""
        found = [""] * len(shards)
        for shard, mine in groups(shards):
            contents = self._shard(shard).index.contents
            for place, sample in zip(mine.tolist(), samples[mine].tolist(), strict=True) if contents else ():
                found[place] = content_name(contents[sample]) if contents[sample] else ""
        return found

    def _shard(self, shard: int) -> _Opened:
        if (self, shard) not in _open:
            if len(_open) >= MAX_OPEN:
                _, oldest = _open.popitem(last=False)
                oldest.close()
            _open[self, shard] = self._load(shard)
        _open.move_to_end((self, shard))
        return _open[self, shard]

    def keep(self, shards: Collection[int]) -> None:
        """Close all shards of this source but `shards`: open files keep the space of what the cache has deleted."""
        for owner, shard in list(_open):
            if owner is self and shard not in shards:
                _open.pop((owner, shard)).close()

    def _load(self, shard: int) -> _Opened:
        entry = self._shards[shard]
        try:
            return self._open_files(entry)
        except _DamagedShardError:
            # Perhaps only the copy in the cache: what a server damaged shows no sooner than here.
            forgotten = [self._folder.forget(name) for name in (entry.name, entry.index_name)]
            if not all(forgotten):
                raise
        return self._open_files(entry)

    def _open_files(self, entry: Shard) -> _Opened:
        for _ in range(MAX_LOST):
            path = self._folder.file(entry.name, entry.bytes)
            index = self._folder.file(entry.index_name, None)
            with suppress(
                FileNotFoundError
            ):  # the cache has deleted it again: its bound is too small for the processes
                for fault in index_faults(index, entry.samples, entry.bytes, entry.fingerprint):
                    raise _DamagedShardError(f"{self._folder}/{entry.name} {fault}: {WAY_OUT}")
                opened = _Opened(os.open(path, os.O_RDONLY | os.O_CLOEXEC), open_index(index, entry.samples))
                if moved := has_moved(opened.descriptor, entry.bytes, opened.index.offsets, opened.index.probe):
                    opened.close()
                    raise _DamagedShardError(f"{self._folder}/{entry.name} {moved}: {WAY_OUT}")
                return replace(opened, side=self._side_captions(entry, path))
        raise OneRankError(
            f"{self._folder}/{entry.name} or its index was deleted while in use. Copy it there again; if it is remote, "
            "data.cache_bytes is too small for the windows that the processes of this node read: raise it"
        )

    def _side_captions(self, entry: Shard, path: Path) -> SideCaptions | None:
        """Open the captions beside a shard, if its manifest names such. Raises _DamagedShardError where they are others."""
        wanted = self._folder.manifest.side_captions.get(entry.name)
        if wanted is None:
            return None
        try:
            side = SideCaptions(side_path(path))
        except (OSError, ValueError) as error:
            raise _DamagedShardError(f"{self._folder}: captions beside {entry.name}: {error}: {WAY_OUT}") from None
        if side.digest != wanted or len(side) != entry.samples:
            side.close()
            raise _DamagedShardError(
                f"{self._folder}: the captions beside {entry.name} are not those that were indexed: {WAY_OUT}"
            )
        return side


def _make_mapped(
    opened: _Opened,
    places: NDArray[np.int64],
    samples: NDArray[np.int64],
    make: Callable[[Members], Made],
    found: list[Made | None],
    bad: dict[int, BadSample],
) -> NDArray[np.bool_]:
    """Fill `found` and `bad` at `places` [N] from the mapped shard; return which `samples` [N] are left for `read`: [N].

    All are left where the shard is cut short meanwhile, also those that were made: of what, nobody knows.
    """
    mapped, every = opened.content(), np.ones(len(samples), np.bool_)
    if mapped is None:
        return every
    extension, failed = opened.index.extensions[0], dict[int, BadSample]()
    with mapped.watched():
        views, left = opened.views(mapped.content, samples)
        for place, content in zip(places[~left].tolist(), views, strict=True):
            try:
                found[place] = make({extension: content})
            except BadSample as reason:
                failed[place] = reason
    if not mapped.is_whole():
        return every
    bad.update(failed)
    return left
