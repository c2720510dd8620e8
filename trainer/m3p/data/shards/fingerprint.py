"""What tells one state of a shard from another: a fingerprint of all of its bytes that count, and a probe of some of them."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from m3p.data.shards.file_bytes import CHUNK, FileBytes
from m3p.data.shards.tar import Member, TarError, walk

DIGEST = 24
"""Bytes of a fingerprint. Those of earlier versions have 20, and saw both ends of every file, or 16, and saw names and sizes."""
CONTENT = 16
"""Bytes of a file's own hash."""
PROBED = 8
"""Samples of a shard that a probe sees, spread evenly."""
PROBE_BYTES = 1024
"""Bytes at each end of a probed sample that a probe sees."""
PROBE_HASH = 4
"""Bytes of the hash of a probed sample."""
PROBE = PROBED * PROBE_HASH
"""Bytes of a probe; zeros at its end where a shard has fewer samples."""


class Fingerprint:
    """blake2b over name, size, place and content of every file of a tar, in their order."""

    def __init__(self, content: FileBytes) -> None:
        self._content, self._digest = content, hashlib.blake2b(digest_size=DIGEST)

    def add(self, member: Member) -> bytes:
        """Take in the next file; return the hash of its content alone. Raises TarError where the tar has become shorter."""
        own = hashlib.blake2b(digest_size=CONTENT)
        for first in range(member.data, member.data + member.size, CHUNK):
            end = min(first + CHUNK, member.data + member.size)
            piece = self._content[first:end]
            if len(piece) != end - first:
                raise TarError(f"it was cut short at byte {first + len(piece)} while it was read")
            own.update(piece)
        name = f"{member.name}\0{member.size}\0{member.data}\n".encode("utf-8", "surrogateescape")
        self._digest.update(name + own.digest())
        return own.digest()

    def hex(self) -> str:
        """Return the fingerprint of all files so far, as manifests have it."""
        return self._digest.hexdigest()


def content_digest(content: bytes | memoryview) -> bytes:
    """Return the hash of a file's content, as `Fingerprint.add` gives it."""
    return hashlib.blake2b(content, digest_size=CONTENT).digest()


def content_number(digest: bytes) -> int:
    """Return the hash of a file, as `Fingerprint.add` gives it, as the number that indexes hold; never 0."""
    return int.from_bytes(digest[:8], "little") or 1


def content_name(number: int) -> str:
    """Return the name of a picture by the number of its content."""
    return f"picture {number:016x}"


def published_number(name: str) -> int:
    """Return the name of a picture in published sets, SET/ID, as the number that indexes hold; never 0."""
    digest = hashlib.blake2b(f"published {name}".encode("utf-8", "surrogateescape"), digest_size=CONTENT).digest()
    return content_number(digest)


def name_of(content: bytes | memoryview) -> str:
    """Return the name of a picture by its bytes: what an index without contents does not know."""
    return content_name(content_number(content_digest(content)))


def tar_fingerprint(path: Path) -> str:
    """Walk a whole tar and return its fingerprint. Raises TarError, OSError."""
    with path.open("rb") as file:
        content = FileBytes(file.fileno(), os.fstat(file.fileno()).st_size)
        found = Fingerprint(content)
        for member in walk(content, whole=True):
            found.add(member)
    return found.hex()


def is_whole(fingerprint: str) -> bool:
    """Tell whether a fingerprint is of this version, and saw all bytes."""
    return len(fingerprint) == 2 * DIGEST


def has_moved(descriptor: int, size: int, offsets: Sequence[int], wanted: bytes) -> str | None:
    """Return how an open tar differs from the one that was indexed, of `size` bytes and the probe `wanted`; None if it does not.

    A few reads, once for each time that a shard is opened. It is another tar if most of the probed samples have changed; if
    fewer have, it is damaged, and whoever reads these says so. An empty probe, of an older index, is not looked at.
    """
    found = os.fstat(descriptor).st_size
    if found != size:
        return f"has {found:,} bytes but was indexed with {size:,} (cut off, or changed since)"
    if not wanted:
        return None
    seen = probe(lambda first, number: os.pread(descriptor, number, first), offsets)
    hashes = [seen[place : place + PROBE_HASH] for place in range(0, PROBE, PROBE_HASH)]
    changed = sum(own != wanted[place * PROBE_HASH :][:PROBE_HASH] for place, own in enumerate(hashes))
    if 2 * changed > min(PROBED, len(offsets) - 1):
        return "holds other samples than those that were indexed (changed since)"
    return None


def probe(read: Callable[[int, int], bytes], offsets: Sequence[int]) -> bytes:
    """Return hashes of both ends of a few samples, which take some reads where a fingerprint takes the whole tar.

    `read` returns bytes from a place on, as many as asked for; `offsets` [samples + 1] are those of the index.
    """
    samples, hashes = len(offsets) - 1, []
    for sample in np.unique(np.linspace(0, samples - 1, PROBED).astype(np.int64)).tolist() if samples else ():
        first, end = int(offsets[sample]), int(offsets[sample + 1])
        size = min(PROBE_BYTES, end - first)
        ends = read(first, size) + read(end - size, size)
        hashes.append(hashlib.blake2b(ends, digest_size=PROBE_HASH).digest())
    return b"".join(hashes).ljust(PROBE, b"\0")
