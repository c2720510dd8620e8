"""The shards of a manifest, column by column: 100,000 of them take 17 MB, where a model each would take 100 MB."""

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

NAME = re.compile(r"[^/\\.][^/\\]*\.tar")


class Shard(NamedTuple):
    """One tar of a source."""

    name: str
    """File name inside the folder; never a path."""
    samples: int
    """Samples in it."""
    bytes: int
    """Size of the tar."""
    fingerprint: str
    """blake2b over (name, size, offset) of every member: changes when the tar is packed again with other content."""

    @property
    def index_name(self) -> str:
        """File name of its index."""
        return index_name(self.name)


class ShardTable(Sequence[Shard]):
    """A sequence of shards that is kept as four columns. Raises ValueError, naming the place, for one that cannot be."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._names: list[str] = []
        self._fingerprints: list[str] = []
        self._samples, self._bytes = array("q"), array("q")
        for shard in shards:
            self._append(shard._asdict())

    @property
    def samples(self) -> NDArray[np.int64]:
        """Samples of each shard, [shards]."""
        return np.array(self._samples, np.int64)

    @property
    def bytes(self) -> NDArray[np.int64]:
        """Size of each tar, [shards]."""
        return np.array(self._bytes, np.int64)

    def _append(self, fields: dict[str, Any]) -> None:
        place = f"shards.{len(self._names)}"
        name, samples, size, fingerprint = (fields[field] for field in Shard._fields)
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise ValueError(f"{place}.name is {name!r}: want the name of a .tar file in the folder, never a path")
        for field, number in (("samples", samples), ("bytes", size)):
            if type(number) is not int or not 0 <= number < 2**63:
                raise ValueError(f"{place}.{field} is {number!r}: want a number of 0 or more")
        if not isinstance(fingerprint, str):
            raise ValueError(f"{place}.fingerprint is {fingerprint!r}: want text")
        self._names.append(name)
        self._samples.append(samples)
        self._bytes.append(size)
        self._fingerprints.append(fingerprint)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> Shard: ...

    @overload
    def __getitem__(self, place: slice) -> "list[Shard]": ...

    def __getitem__(self, place: int | slice) -> "Shard | list[Shard]":
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        return Shard(self._names[place], self._samples[place], self._bytes[place], self._fingerprints[place])

    def __iter__(self) -> Iterator[Shard]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((len(self), *self[:8]))


def read_json(text: "bytes") -> Any:
    """Parse a manifest; what stands under `shards` becomes a `ShardTable` while it is read. Raises ValueError."""
    table = ShardTable([])

    def take(fields: dict[str, Any]) -> Any:
        if fields.keys() == set(Shard._fields):
            table._append(fields)
            return None
        return fields

    content = json.loads(text, object_hook=take)
    if isinstance(content, dict) and isinstance(content.get("shards"), list):
        strangers = [number for number, shard in enumerate(content["shards"]) if shard is not None]
        if strangers or len(content["shards"]) != len(table):
            raise ValueError(f"shards.{(strangers or [0])[0]} has not the fields {', '.join(Shard._fields)}")
        content["shards"] = table
    return content


def index_name(shard_name: str) -> str:
    """Return the file name of a shard's index: shard-000000.tar -> shard-000000.idx."""
    return shard_name.removesuffix(".tar") + ".idx"
