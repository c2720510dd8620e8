"""The samples of a tar in their order, read from end to end without an index: for programs that make something of every one."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from m3p.data.shards.file_bytes import FileBytes
from m3p.data.shards.index import open_side
from m3p.data.shards.sample_members import split_name
from m3p.data.shards.tar import TarError, walk
from m3p.errors import UserError


class TarSample(NamedTuple):
    """A sample as a tar holds it."""

    key: str
    """Its name in the tar, without extensions."""
    members: dict[str, bytes]
    """Its files by extension."""


LARGEST_FILE = 512 * 2**20
"""Bytes of a file of a sample that is read: it is held in memory."""
Wanted = Callable[[str], bool]


def _every(extension: str) -> bool:
    return True


def tar_samples(path: Path, wanted: Wanted = _every) -> Iterator[TarSample]:
    """Yield the samples of a tar in their order, each with its files of the extensions that are `wanted`.

    Raises UserError: a broken tar, or a file that no memory should hold.
    """
    with path.open("rb") as file:
        content = FileBytes(file.fileno(), os.fstat(file.fileno()).st_size)
        sample: TarSample | None = None
        try:
            for member in walk(content, whole=True):
                parts = split_name(member.name)
                if parts is None:
                    continue
                if sample is None or parts[0] != sample.key:
                    if sample is not None:
                        yield sample
                    sample = TarSample(parts[0], {})
                if wanted(parts[1]):
                    if member.size > LARGEST_FILE:
                        raise UserError(
                            f"{path}: {member.name} has {member.size:,} bytes; the rule is at most {LARGEST_FILE:,}: take it out."
                        )
                    sample.members[parts[1]] = bytes(content[member.data : member.data + member.size])
        except TarError as error:
            raise UserError(f"{path} is no whole tar: {error}. Copy it or make it again.") from None
        if sample is not None:
            yield sample


def shown_samples(path: Path, wanted: Wanted = _every) -> Iterator[TarSample]:
    """Yield the samples of a tar as training reads them: with the captions beside the tar, where there are such.

    Raises UserError: a broken tar, or a broken file of captions.
    """
    side = open_side(path)
    if side is None:
        yield from tar_samples(path, wanted)
        return
    try:
        for number, (key, members) in enumerate(tar_samples(path, wanted)):
            yield TarSample(key, {name: bytes(content) for name, content in side.over(number, members).items()})
    finally:
        side.close()
