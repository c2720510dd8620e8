"""One walk over a tar finds where each sample lies inside it, so that any sample is one seek and one read."""

import os
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from m3p.data.kinds import KINDS, Kind
from m3p.data.records import FROM_FILES, Members, Record, choose_captions, is_placeholder, read_record, text_files
from m3p.data.records import LARGEST_FILE as LARGEST_TEXT
from m3p.data.shards.file_bytes import FileBytes
from m3p.data.shards.fingerprint import Fingerprint, content_number, probe, published_number
from m3p.data.shards.index_file import LONGEST_EXTENSION, MAX_MEMBERS, OTHER, IndexFile, name_bytes, write_index
from m3p.data.shards.sample_members import split_name
from m3p.data.shards.shard_table import index_name
from m3p.data.shards.side_captions import SideCaptions, side_path
from m3p.data.shards.tar import BLOCK, Member, TarError, head_sum, is_followed, walk
from m3p.data.shards.tar_index import TarIndex
from m3p.errors import BadSample, UserError
from m3p.stored_files import check_no_pointer
from m3p.visual import main_file
from m3p.visual.decode import IMAGE_KINDS, picture_kind
from m3p.visual.npz import LARGEST_NPZ, read_shapes
from m3p.visual.tower.store import MEMBER, StoredTower, read_tokens

LARGEST_SIZE = 2**32 - 1
MAX_LANGUAGES = 2000
"""Languages of the captions of a tar."""
MAX_NAMES = 100
"""Different names of files and fields that are kept to be named; of more, the first ones."""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def index_tar(path: Path, kind: str, language: str = "en") -> TarIndex:
    """Walk the tar at `path` as `scan_tar` does, write its index beside it, and return what is in it."""
    found, index = scan_tar(path, kind, language)
    write_index(path.with_name(index_name(path.name)), index)
    return found


def scan_tar(path: Path, kind: str, language: str = "en") -> tuple[TarIndex, IndexFile]:
    """Walk the tar at `path`; return what is in it, and what its index file holds.

    `language` is the language of captions that come as KEY.txt (img2dataset's layout). Captions beside the tar
    (side_captions.py) count in place of those in it. Raises UserError for a compressed, truncated or broken tar, for a sample
    whose members are apart, and for region features of two widths.
    """
    check_no_pointer(path)
    with path.open("rb") as file:
        start = file.read(6)
        for magic, name in COMPRESSED.items():
            if start.startswith(magic):
                raise UserError(f"{path} is compressed ({name}); samples are read by offset: decompress it first.")
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise UserError(f"{path} is empty (0 bytes), not a tar: copy it again or remove it.")
        scan = _Scan(path, kind, language, FileBytes(file.fileno(), size), open_side(path))
        try:
            found = scan.run(size)
            found = replace(found, dotted=scan.dotted, followed=is_followed(scan.content, scan.offsets[-1]))
        except TarError as error:
            raise UserError(f"{path} is no whole tar: {error}. Copy it or make it again.") from None
        finally:
            if scan.side is not None:
                scan.side.close()
        return found, scan.index(found.fingerprint)


def open_side(path: Path) -> SideCaptions | None:
    """Return the captions beside the tar at `path`; None where there are none. Raises UserError for a broken file."""
    try:
        return SideCaptions.beside(path)
    except ValueError as error:
        raise UserError(f"{path.parent}: {error}: make it again with `m3p prepare`.") from None


class _Scan:
    """State of one walk over one tar."""

    def __init__(
        self, path: Path, kind: str, language: str, content: FileBytes, side: SideCaptions | None = None
    ) -> None:
        self.path, self.kind, self.language, self.content, self.side = path, kind, language, content, side
        self.offsets: list[int] = []
        """Where each sample begins, and where the last one ends."""
        self.sizes: list[int] = []
        """Bytes of each sample's text or region features."""
        self.contents: list[int] = []
        """Of each sample, as in an `IndexFile`."""
        self.published: list[int] = []
        """Of each sample, as in an `IndexFile`."""
        self.members: list[str] = []
        """Extensions of the files of the sample under way."""
        self.kinds: list[tuple[str, ...]] = []
        """The extensions of the files of each sample."""
        self.lengths, self.sums = array("I"), array("H")
        """Bytes and header sum of each file of the tar, as in an `IndexFile`."""
        self.captions, self.layouts = Counter[str](), Counter[str]()
        self.unread, self.reasons, self.placeholders = Counter[str](), Counter[str](), Counter[str]()
        self.width: int | None = None
        self.stored_tower: StoredTower | None = None
        self.unnamed = self.unusable = self.without_picture = 0
        self.dotted = ""
        self.links: list[str] = []

    def run(self, size: int) -> TarIndex:
        """Walk the tar, whose size is given. Raises UserError and TarError."""
        fingerprint = Fingerprint(self.content)
        seen: set[str] = set()
        sample, extents, hashes, end = "", dict[str, tuple[int, int]](), dict[str, bytes](), 0
        for member in walk(self.content, whole=True, links=self.links):
            digest = fingerprint.add(member)
            parts = split_name(member.name)
            if parts is None:
                continue
            key, extension = parts
            if key != sample or not self.offsets:
                self.finish(sample, extents, hashes)
                if key in seen:
                    raise UserError(
                        f"{self.path}: the members of sample {key!r} are not side by side, or the key comes twice: "
                        "pack the tar again with its files sorted by name (tar --sort=name)."
                    )
                seen.add(key)
                sample, extents, hashes = key, {}, {}
                self.offsets.append(member.start)
            self.note(member, extension)
            extents[extension], hashes[extension] = (member.data, member.size), digest
            end = member.end
        self.finish(sample, extents, hashes)
        self.offsets.append(end)
        if self.side is not None and len(self.side) != len(self.kinds):
            raise UserError(
                f"{side_path(self.path)} has {len(self.side):,} lines, and its tar {len(self.kinds):,} samples: make it again."
            )
        return TarIndex(
            samples=len(self.kinds),
            bytes=size,
            fingerprint=fingerprint.hex(),
            captions=self.captions,
            region_features=self.width,
            stored_tower=self.stored_tower,
            unnamed=self.unnamed,
            unusable=self.unusable,
            without_picture=self.without_picture,
            layouts=self.layouts,
            unread=self.unread,
            reasons=self.reasons,
            placeholders=self.placeholders,
            links=sum(split_name(name) is not None for name in self.links),
            side_captions="" if self.side is None else self.side.digest,
        )

    def note(self, member: Member, extension: str) -> None:
        """Note a file's length, and its header's sum; OTHER where there is more before its content than one header."""
        plain = member.data == member.start + BLOCK and member.size <= LARGEST_SIZE
        self.members.append(extension)
        if self.is_dotted(extension):
            self.dotted = member.name
        self.lengths.append(min(member.size, LARGEST_SIZE))
        self.sums.append(head_sum(self.content[member.start : member.data]) if plain else OTHER)

    def is_dotted(self, extension: str) -> bool:
        """Tell whether this is the first file whose ending has a dot that no layout knows: "v2.jpg"."""
        known = extension.rpartition(".")[2] in (*IMAGE_KINDS, "json", "txt") and not text_files([extension])
        return known and "." in extension and not self.dotted

    def index(self, fingerprint: str) -> IndexFile:
        """Return what the index file holds, once `run` is through."""
        extensions = _usual(self.kinds)
        usual = np.array([kind == extensions for kind in self.kinds], bool)
        ends = np.cumsum([len(kind) for kind in self.kinds], dtype=np.int64)
        rows = ends[usual, None] - np.arange(len(extensions), 0, -1)
        lengths = np.zeros((len(usual), len(extensions)), np.uint32)
        sums = np.full(lengths.shape, OTHER, np.uint16)
        lengths[usual], sums[usual] = np.array(self.lengths, np.uint32)[rows], np.array(self.sums, np.uint16)[rows]
        sizes, offsets = np.array(self.sizes, np.uint32), np.array(self.offsets, np.uint64).data
        probed = probe(lambda first, size: self.content[first : first + size], self.offsets)
        contents, published = np.array(self.contents, np.uint64).data, np.array(self.published, np.uint64).data
        return IndexFile(offsets, sizes, extensions, lengths, sums, contents, published, fingerprint, probed)

    def finish(self, key: str, extents: dict[str, tuple[int, int]], hashes: dict[str, bytes]) -> None:
        """Count what the sample `key` offers."""
        if not extents:
            return
        self.kinds.append(_shared(tuple(self.members)))
        self.members = []
        kind = KINDS[self.kind]
        _, size = extents.get(kind.measured, (0, 0))
        self.sizes.append(min(size, LARGEST_SIZE))
        main = main_file(extents) if kind.has_pictures else kind.measured
        self.contents.append(content_number(hashes[main]) if main in hashes and extents[main][1] else 0)
        self.published.append(0)  # until its record is read
        read = kind.files.union(text_files(extents)) if kind.has_pictures else kind.files
        self.count_unread(f"KEY.{extension}" for extension in extents if extension not in read)
        if not kind.has_pictures:
            self.unusable += not self.has_text(kind, extents)
            return
        has_picture = picture_kind(extents) is not None
        if has_picture:
            self.count_unread(
                f"KEY.{name} beside KEY.{main}" for name in IMAGE_KINDS if name in extents and name != main
            )
        has_tokens = MEMBER in extents and self.has_tokens(key, extents, not has_picture)
        has_features = not has_picture and not has_tokens and main is not None
        usable = self.has_captions(extents) and (has_picture or has_tokens or has_features)
        if "regions.npz" in extents:
            width = feature_width(self.read(extents, "regions.npz", LARGEST_NPZ))
            usable = usable and width is not None
            self.check_width(key, width)
        self.without_picture += usable and has_features
        self.unusable += not usable

    def has_tokens(self, key: str, extents: dict[str, tuple[int, int]], are_its_picture: bool) -> bool:
        """Say whether a sample has tokens of a tower that can be read; note the tower, and the picture that they are of.

        Raises UserError where the samples before were made by another tower.
        """
        try:
            stored = read_tokens(self.read(extents, MEMBER, LARGEST_NPZ))
        except BadSample as reason:
            self.count_reason(reason)
            return False
        self.stored_tower = self.stored_tower or stored.made_by
        if stored.made_by != self.stored_tower:
            raise UserError(
                f"{self.path}: sample {key!r} has {stored.made_by}, those before it {self.stored_tower}: make all with one tower "
                "(`m3p prepare features`)."
            )
        if are_its_picture:
            self.contents[-1] = stored.picture
        return True

    def has_text(self, kind: Kind, extents: dict[str, tuple[int, int]]) -> bool:
        """Say whether a sample without a picture can be read, and count the languages that it names."""
        files = {name: self.read(extents, name, LARGEST_TEXT) for name in extents if name in kind.files}
        try:
            record = kind.reader(self.language, None)(files)
        except BadSample as reason:
            self.count_reason(reason)
            return False
        if not kind.needs_language:
            self.captions.update(kind.texts(record, self.language).keys())
        return True

    def count_reason(self, reason: BadSample) -> None:
        """Count why the texts of a sample cannot be used, up to so many different reasons."""
        if len(self.reasons) < MAX_NAMES or str(reason) in self.reasons:
            self.reasons[str(reason)] += 1

    def has_captions(self, extents: dict[str, tuple[int, int]]) -> bool:
        """Count the languages and the layout of the sample's captions; say whether all of them can be used."""
        try:
            files = self.texts(extents)
            record = read_record(files, self.language)
            self.published[-1] = published_number(record.published) if record.published else 0
            self.unnamed += record.unnamed
            self.count_layout(record, files)
            good = [language for language in record.captions if self.is_good(record, language)]
            self.captions.update(good)
            self.check_languages()
            chosen = choose_captions(record.captions, None)
            self.placeholders.update(
                text.strip()[:8] for texts in chosen.values() for text in texts if is_placeholder(text)
            )
        except BadSample as reason:
            self.count_reason(reason)
            return False
        return True

    def texts(self, extents: dict[str, tuple[int, int]]) -> Members:
        """Return the JSON and text files of the sample, or the line that stands for them. Raises BadSample."""
        if self.side is not None:
            number = len(self.kinds) - 1
            return self.side.over(number, {}) if number < len(self.side) else {}
        names = [*(["json"] if "json" in extents else []), *text_files(extents)]
        return {name: self.read(extents, name, LARGEST_TEXT) for name in names}

    def check_languages(self) -> None:
        """Raise UserError where captions are under more names than there may be languages."""
        if len(self.captions) > MAX_LANGUAGES:
            raise UserError(
                f"{self.path}: captions in more than {MAX_LANGUAGES:,} languages, such as {next(reversed(self.captions))!r}: "
                "the rule is an object of language and texts in KEY.json; put the texts under their languages."
            )

    def is_good(self, record: Record, language: str) -> bool:
        """Tell whether the captions in a language can be used."""
        try:
            return bool(choose_captions(record.captions, [language]))
        except BadSample:
            return False

    def count_layout(self, record: Record, files: Iterable[str]) -> None:
        """Count where the captions were found, and what of the JSON and the text files is not read."""
        self.layouts[record.layout] += 1
        self.count_unread(f"the field {name}" for name in record.unread)
        if record.layout not in FROM_FILES and "caption" not in record.used:
            self.count_unread(f"KEY.{name} beside captions in KEY.json" for name in text_files(list(files)))

    def count_unread(self, names: Iterable[str]) -> None:
        """Count what is not read, up to so many different names."""
        for name in names:
            if len(self.unread) < MAX_NAMES or name in self.unread:
                self.unread[name] += 1

    def check_width(self, key: str, width: int | None) -> None:
        """Note the width of region features. Raises UserError where others had another."""
        self.width = self.width or width
        if width not in (None, self.width):
            raise UserError(
                f"{self.path}: the region features of sample {key!r} have width {width}, those before it {self.width}: "
                "make the regions with one detector."
            )

    def read(self, extents: dict[str, tuple[int, int]], extension: str, limit: int) -> bytes:
        """Return a file of the sample; of one of more than `limit` bytes the first `limit` + 1, which its readers refuse."""
        start, size = extents[extension]
        return self.content[start : start + min(size, limit + 1)]


@cache
def _shared(kind: tuple[str, ...]) -> tuple[str, ...]:
    """Return one and the same object for equal ones: a shard of a million samples has few kinds."""
    return kind


def _usual(kinds: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the extensions of which most samples consist, as far as an index file holds such."""
    commonest = Counter(kinds).most_common(1)[0][0] if kinds else ("",)
    fits = len(set(commonest)) == len(commonest) <= MAX_MEMBERS
    return commonest if fits and all(len(name_bytes(name)) <= LONGEST_EXTENSION for name in commonest) else ("",)


def feature_width(archive: bytes) -> int | None:
    """Return the width D of "features" [R, D] in the bytes of a regions.npz from its header alone; None if unusable."""
    try:
        shape = read_shapes(archive)["features"]
    except Exception:  # on broken bytes these parsers raise nearly anything, from KeyError to TokenError
        return None
    return int(shape[1]) if len(shape) == 2 and shape[1] >= 1 else None
