"""One walk over a tar finds where each sample lies inside it, so that any sample is one seek and one read."""

import hashlib
import io
import json
import mmap
import os
import re
import zipfile
from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from m3p.data.shards.index_file import LONGEST_EXTENSION, MOST_MEMBERS, OTHER, IndexFile, name_bytes, write_index
from m3p.data.shards.manifest import Kind
from m3p.data.shards.shard_table import index_name
from m3p.data.shards.tar import BLOCK, Member, TarError, head_sum, is_followed, walk
from m3p.errors import BadSample, UserError
from m3p.visual.decode import IMAGE_KINDS, picture_kind

LARGEST_SIZE = 2**32 - 1
DIGEST = 20
"""Bytes of a fingerprint. (16 once, when it saw names and sizes alone.)"""
END = 512
"""Bytes at each end of a file that a fingerprint sees: those beside the headers, which are read anyway. A regions.npz ends with
the checksums of its arrays, and pictures hardly differ in the middle alone; to read all of 100,000 shards would take hours."""
_HALF = re.compile(r"[\ud800-\udfff]")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class TarIndex:
    """What one walk over a tar finds."""

    samples: int
    bytes: int
    """Size of the tar."""
    fingerprint: str
    """blake2b over name, size, offset and both ends of every member."""
    captions: Counter[str] = field(default_factory=Counter)
    """Samples that have a caption, by language."""
    region_features: int | None = None
    """Width of the region features, if any sample has them."""
    plain_captions: int = 0
    """Samples whose caption is a KEY.txt."""
    unusable: int = 0
    """Samples without a picture and a caption, with unreadable regions, or without text; training skips them."""
    dotted: str = ""
    """The first file whose name has a dot before its ending, if there is one: all from there on counts as the ending."""
    followed: bool = False
    """Whether another tar stands behind its end, of which nothing is read."""


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and extension at the first dot of its base name, as webdataset does.

    Returns None for names that belong to no sample: no dot, or a hidden file such as macOS's "._0001.jpg".
    """
    start = name.rfind("/") + 1
    dot = name.find(".", start)
    if dot <= start or dot == len(name) - 1:  # not found: -1
        return None
    return name[:dot], name[dot + 1 :].lower()


def members(span: bytes) -> dict[str, bytes]:
    """Parse the bytes of one sample, as cut out by its index, into {"jpg": ..., "json": ...}.

    Raises BadSample where they are not the whole, well-formed members of one sample.
    """
    found: dict[str, bytes] = {}
    sample = None
    try:
        files = [(m.name, span[m.data : m.data + m.size]) for m in walk(span, whole=False)]
    except TarError as error:
        raise BadSample(f"broken tar: {error}") from None
    for name, content in files:
        parts = split_name(name)
        if parts is None:
            continue
        key, extension = parts
        if sample is not None and key != sample:
            raise BadSample(f"members of two samples, {sample!r} and {key!r}: the index is not of this tar")
        if extension in found:
            raise BadSample(f"two members named {name!r}")
        sample = key
        found[extension] = content
    if not found:
        raise BadSample("no members")
    return found


def index_tar(path: Path, kind: Kind, language: str = "en") -> TarIndex:
    """Walk the tar at `path` as `scan_tar` does, write its index beside it, and return what is in it."""
    found, index = scan_tar(path, kind, language)
    write_index(path.with_name(index_name(path.name)), index)
    return found


def scan_tar(path: Path, kind: Kind, language: str = "en") -> tuple[TarIndex, IndexFile]:
    """Walk the tar at `path`; return what is in it, and what its index file holds.

    `language` is the language of captions that come as KEY.txt (img2dataset's layout). Raises UserError for a
    compressed, truncated or broken tar, for a sample whose members are apart, and for region features of two widths.
    """
    with path.open("rb") as file:
        start = file.read(6)
        for magic, name in COMPRESSED.items():
            if start.startswith(magic):
                raise UserError(f"{path} is compressed ({name}); samples are read by offset: decompress it first.")
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise UserError(f"{path} is empty (0 bytes), not a tar: copy it again or remove it.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            scan = _Scan(path, kind, language, content)
            try:
                found = scan.run(size)
                found = replace(found, dotted=scan.dotted, followed=is_followed(content, scan.offsets[-1]))
            except TarError as error:
                raise UserError(f"{path} is no whole tar: {error}. Copy it or make it again.") from None
    return found, scan.index()


class _Scan:
    """State of one walk over one tar."""

    def __init__(self, path: Path, kind: Kind, language: str, content: mmap.mmap) -> None:
        self.path, self.kind, self.language, self.content = path, kind, language, content
        self.offsets: list[int] = []
        """Of each sample, and the last one's end."""
        self.sizes: list[int] = []
        """Bytes of each sample's text or region features."""
        self.members: list[str] = []
        """Extensions of the files of the sample under way."""
        self.kinds: list[tuple[str, ...]] = []
        """Those of each sample."""
        self.lengths, self.sums = array("I"), array("H")
        """Of all files, as in an `IndexFile`."""
        self.captions: Counter[str] = Counter()
        self.width: int | None = None
        self.plain = self.unusable = 0
        self.dotted = ""

    def run(self, size: int) -> TarIndex:
        digest = hashlib.blake2b(digest_size=DIGEST)
        seen: set[str] = set()
        sample, extents, end = "", dict[str, tuple[int, int]](), 0
        for member in walk(self.content, whole=True):
            digest.update(f"{member.name}\0{member.size}\0{member.data}\n".encode("utf-8", "surrogateescape"))
            digest.update(self.ends(member))
            parts = split_name(member.name)
            if parts is None:
                continue
            key, extension = parts
            if key != sample or not self.offsets:
                self.finish(sample, extents)
                if key in seen:
                    raise UserError(
                        f"{self.path}: the members of sample {key!r} are not side by side, or the key comes twice: "
                        "pack the tar again with its files sorted by name (tar --sort=name)."
                    )
                seen.add(key)
                sample, extents = key, {}
                self.offsets.append(member.start)
            self.note(member, extension)
            extents[extension] = (member.data, member.size)
            end = member.end
        self.finish(sample, extents)
        self.offsets.append(end)
        return TarIndex(
            samples=len(self.kinds),
            bytes=size,
            fingerprint=digest.hexdigest(),
            captions=self.captions,
            region_features=self.width,
            plain_captions=self.plain,
            unusable=self.unusable,
        )

    def ends(self, member: Member) -> bytes:
        """Return what the fingerprint sees of a file: all of a short one, as most texts are, both ends of a longer one."""
        first, last = member.data, member.data + member.size
        if member.size <= 2 * END:
            return self.content[first:last]
        return self.content[first : first + END] + self.content[last - END : last]

    def note(self, member: Member, extension: str) -> None:
        """Note a file's length, and its header's sum; OTHER where there is more before its content than one header."""
        plain = member.data == member.start + BLOCK and member.size <= LARGEST_SIZE
        self.members.append(extension)
        if not self.dotted and "." in extension and extension.rpartition(".")[2] in (*IMAGE_KINDS, "json", "txt"):
            self.dotted = member.name
        self.lengths.append(min(member.size, LARGEST_SIZE))
        self.sums.append(head_sum(self.content[member.start : member.data]) if plain else OTHER)

    def index(self) -> IndexFile:
        """Return what the index file holds, once `run` is through."""
        extensions = _usual(self.kinds)
        usual = np.array([kind == extensions for kind in self.kinds], bool)
        ends = np.cumsum([len(kind) for kind in self.kinds], dtype=np.int64)
        rows = ends[usual, None] - np.arange(len(extensions), 0, -1)
        lengths = np.zeros((len(usual), len(extensions)), np.uint32)
        sums = np.full(lengths.shape, OTHER, np.uint16)
        lengths[usual], sums[usual] = np.array(self.lengths, np.uint32)[rows], np.array(self.sums, np.uint16)[rows]
        sizes, offsets = np.array(self.sizes, np.uint32), np.array(self.offsets, np.uint64).data
        return IndexFile(offsets, sizes, extensions, lengths, sums)

    def finish(self, key: str, extents: dict[str, tuple[int, int]]) -> None:
        """Count what the sample `key` offers."""
        if not extents:
            return
        self.kinds.append(_shared(tuple(self.members)))
        self.members = []
        _, size = extents.get("txt" if self.kind == "text" else "regions.npz", (0, 0))
        self.sizes.append(min(size, LARGEST_SIZE))
        if self.kind == "text":
            self.unusable += "txt" not in extents
            return
        languages = self.languages(extents)
        self.captions.update(languages)
        usable = bool(languages) and picture_kind(extents) is not None
        if "regions.npz" in extents:
            width = feature_width(self.read(extents, "regions.npz"))
            usable = usable and width is not None
            self.check_width(key, width)
        self.unusable += not usable

    def languages(self, extents: dict[str, tuple[int, int]]) -> list[str]:
        """Return the languages in which the sample has a caption; none where its JSON is broken."""
        record: Any = {}
        if "json" in extents:
            try:
                record = json.loads(self.read(extents, "json"))
            except (ValueError, RecursionError):
                return []
        captions = record.get("captions") if isinstance(record, dict) else None
        if isinstance(captions, dict):
            # Half a character ("\ud800") may be spelled there: training skips such a sample, and no manifest can hold it.
            whole = not _HALF.search("".join(captions))
            return [language for language, texts in captions.items() if texts and whole]
        if "txt" in extents:
            self.plain += 1
            return [self.language]
        return []

    def check_width(self, key: str, width: int | None) -> None:
        self.width = self.width or width
        if width not in (None, self.width):
            raise UserError(
                f"{self.path}: the region features of sample {key!r} have width {width}, those before it {self.width}: "
                "make the regions with one detector."
            )

    def read(self, extents: dict[str, tuple[int, int]], extension: str) -> bytes:
        start, size = extents[extension]
        return self.content[start : start + size]


@cache
def _shared(kind: tuple[str, ...]) -> tuple[str, ...]:
    """Return one and the same object for equal ones: a shard of a million samples has few kinds."""
    return kind


def _usual(kinds: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the extensions of which most samples consist, as far as an index file holds such."""
    most = Counter(kinds).most_common(1)[0][0] if kinds else ("",)
    fits = len(set(most)) == len(most) <= MOST_MEMBERS
    return most if fits and all(len(name_bytes(name)) <= LONGEST_EXTENSION for name in most) else ("",)


def feature_width(archive: bytes) -> int | None:
    """Return the width D of "features" [R, D] in the bytes of a regions.npz from its header alone; None if unusable."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as content, content.open("features.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape: tuple[int, ...] = read(file)[0]
    except Exception:  # on broken bytes these parsers raise nearly anything, from KeyError to TokenError
        return None
    return int(shape[1]) if len(shape) == 2 and shape[1] >= 1 else None
