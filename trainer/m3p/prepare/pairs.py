"""Captioned pictures to shards: what all importers of captions share. Records come one by one; every one is checked.

An importer is a file that turns what a set publishes into `Entry`s, and calls `write_pairs`. If any record is wrong, nothing
is left behind, and all mistakes are reported at once.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3p.data.identity import Numbers, picture_numbers, unknown
from m3p.data.kinds import CAPTIONS
from m3p.data.languages import LANGUAGE_TAG
from m3p.data.records import OWN_FIELDS, PUBLISHED_ID, find_captions, is_caption, is_published_id
from m3p.data.shards.fingerprint import content_digest, content_number, published_number
from m3p.data.shards.manifest import Manifest
from m3p.data.source import Source, SourceConfig
from m3p.errors import BadSample, UserError
from m3p.prepare.pictures import PictureFolder, checked_extension
from m3p.prepare.region_folder import RegionFolder
from m3p.prepare.regions import pack_regions
from m3p.prepare.shards import ShardWriter
from m3p.prepare.staging import check_output, staged_folder
from m3p.terminal import one_line, say
from m3p.unicode_text import HALF, is_unicode

LISTED = 20
SHOWN = 600
"""Characters of a mistake that are shown."""
MARKER = "manifest.json"
Fields = dict[str, Any]


class Entry(NamedTuple):
    """A record as an importer found it."""

    where: str
    """Where it stands, for messages: "line 3"."""
    record: Fields | str
    """{"id", "image", "captions", "concept"?, "category"?, "published_id"?}; or why it cannot be read.

    "image" is a path in the folder of the pictures, several of which the first that exists counts, or the bytes of a picture.
    "published_id" is SET/ID, the name that a picture has in a published set, whichever source it comes from.
    """


@dataclass(frozen=True)
class Options:
    """What every importer of captions is told."""

    pictures: PictureFolder | None
    """None where there are no pictures, but region features alone."""
    language: str | None = None
    """Of captions that name none; without it they are mistakes."""
    regions: Path | None = None
    """Folder of ID.npz with stored region features, or of IMAGE.npz where its regions.json says so."""
    skip_bad: bool = False
    """Leave wrong records out instead of refusing all."""
    samples_per_shard: int = 1000
    overwrite: bool = False
    origin: dict[str, str] = field(default_factory=dict)
    """What the manifest says of a published set: set, task, split, caption_source, licence."""
    leave_out: Sequence[Path] = ()
    """Sources whose pictures are left out, such as those of a test."""


@dataclass
class CaptionCounts:
    """How many captions a picture has in each language."""

    lowest: dict[str, int] = field(default_factory=dict)
    """Fewest captions of a picture that has any, by language."""
    highest: dict[str, int] = field(default_factory=dict)
    """Most captions of a picture, by language."""

    def add(self, captions: Mapping[str, object]) -> None:
        """Note the captions of a picture: language -> text or texts."""
        for language, texts in captions.items():
            number = len(texts) if isinstance(texts, list) else 1
            self.lowest[language] = min(number, self.lowest.get(language, number))
            self.highest[language] = max(number, self.highest.get(language, number))

    def per_picture(self) -> str:
        """Return how many captions a picture has, if all languages agree, else by language: "5", "en 5 to 7, fr 1"."""
        spans = {
            language: f"{low}" if low == self.highest[language] else f"{low} to {self.highest[language]}"
            for language, low in sorted(self.lowest.items())
        }
        return next(iter(spans.values())) if len(set(spans.values())) == 1 else ", ".join(map(" ".join, spans.items()))


@dataclass
class _Checker:
    """Checks records one by one; remembers, of the good ones, the ids and the width of the first region features."""

    options: Options
    regions: RegionFolder | None
    first: dict[str, str] = field(default_factory=dict)
    """Where each id stands."""
    width: tuple[int, str] | None = None
    regions_of: dict[str, tuple[str, object]] = field(default_factory=dict)
    """Where each file of region features was first taken, and for which picture."""
    unwanted: Numbers = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Numbers of the pictures that are left out, sorted (data/identity.py)."""
    left_out: int = 0
    """Records that were left out for their pictures."""
    unread: Counter[str] = field(default_factory=Counter)
    """Records by fields that are not kept."""
    counts: CaptionCounts = field(default_factory=CaptionCounts)
    """Of the good records."""

    def members(self, entry: Entry) -> tuple[dict[str, bytes], list[str]]:
        """Return the members of a sample, and what is wrong with the record: nothing, one or several sentences.

        Of a record that is left out for its picture there are neither.
        """
        if not isinstance(entry.record, dict):
            return {}, [entry.record]
        record, width = dict(entry.record), self.width
        if isinstance(record.get("id"), int) and not isinstance(record["id"], bool):
            record["id"] = str(record["id"])
        captions, used = self._captions(record)
        mistakes = self._id_mistakes(record.get("id")) + caption_mistakes(captions)
        members, wrong = self._picture(record.get("image"))
        mistakes += wrong + name_mistakes(record) + unicode_mistakes({**record, "captions": captions})
        if self.regions is not None and isinstance(record.get("id"), str):
            members |= self._regions(entry.where, record, mistakes)
        if mistakes:
            self.width = width
            if (
                self.regions_of and next(reversed(self.regions_of.values()))[0] == entry.where
            ):  # it was the first to take them
                self.regions_of.popitem()
            return {}, mistakes
        self.first[record["id"]] = entry.where
        if self._is_unwanted(members, record):
            self.left_out += 1
            return {}, []
        assert isinstance(captions, dict), "it has passed the checks"
        self.counts.add(captions)
        self.unread.update(name for name in record if name not in (*OWN_FIELDS, "image", *used))
        return members | {"json": _json({**record, "captions": captions})}, []

    def _is_unwanted(self, files: dict[str, bytes], record: Fields) -> bool:
        """Tell whether a good record, stored as `files`, is of a picture that is to be left out."""
        if not self.unwanted.size:
            return False
        main = next(iter(files.values()))  # the picture, or the region features where there is none
        numbers = [content_number(content_digest(main))]
        if record.get(PUBLISHED_ID):
            numbers.append(published_number(record[PUBLISHED_ID]))
        return bool(np.isin(np.array(numbers, np.uint64), self.unwanted).any())

    def _captions(self, record: Fields) -> tuple[object, tuple[str, ...]]:
        """Return the captions by language, in whatever layout, and the fields they were read from."""
        if isinstance(record.get("captions"), dict):
            return record["captions"], ()
        try:
            captions, _, used, _ = find_captions(record, {}, self.options.language)
        except BadSample:
            return record.get("captions"), ()
        return dict(captions), tuple(used)

    def _id_mistakes(self, identity: object) -> list[str]:
        if not isinstance(identity, str) or not identity:
            return [f"id is {identity!r}; the rule is text or a number that names the record"]
        first = self.first.get(identity)
        return [f"id {identity!r} is that of {first} again; ids name one record each"] if first else []

    def _picture(self, image: object) -> tuple[dict[str, bytes], list[str]]:
        """Return the picture by its extension, and what is wrong with it."""
        try:
            if isinstance(image, bytes):
                return {checked_extension(image): image}, []
            names = [image] if isinstance(image, str) else image
            if self.options.pictures is None:
                return {}, [] if self.options.regions else ["it has no picture; give --images, --regions, or both"]
            if not (isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)):
                return {}, [f"image is {image!r}; the rule is a path in {self.options.pictures.folder}"]
            extension, content = self.options.pictures.read(*names)
        except ValueError as error:
            return {}, [str(error)]
        return {extension: content}, []

    def _regions(self, place: str, record: Fields, mistakes: list[str]) -> dict[str, bytes]:
        """Return the region features of the record at `place`; note in `mistakes` what is wrong with them."""
        assert self.regions is not None
        image = record.get("image")
        try:
            name, arrays = self.regions.load(record["id"], image)
        except ValueError as error:
            mistakes.append(str(error))
            return {}
        where, picture = self.regions_of.setdefault(name, (place, image))
        if picture != image:
            mistakes.append(
                f"regions {name!r} are those of {where}, of the picture {picture!r}, too; the rule is a file for each picture: "
                "name them by the ids"
            )
        width = arrays["features"].shape[1]
        self.width = self.width or (width, name)
        if width != self.width[0]:
            mistakes.append(f"regions {name!r}: features are {width} wide, those of {self.width[1]!r} {self.width[0]}")
        return {"regions.npz": pack_regions(arrays)}


def name_mistakes(record: Fields) -> list[str]:
    """Return what is wrong with the concept and category of a record."""
    found = []
    for name in ("concept", "category"):
        if not isinstance(record.get(name, ""), str):
            found.append(f"{name} is {record[name]!r}; the rule is text")
    if record.get("concept") == "":
        found.append("concept is ''; the rule is text that names it: leave it out where there is none")
    published = record.get(PUBLISHED_ID)
    if published is not None and not (isinstance(published, str) and is_published_id(published)):
        found.append(f"{PUBLISHED_ID} is {published!r}; the rule is SET/ID, such as coco/391895")
    return found


def caption_mistakes(captions: object) -> list[str]:
    """Return what is wrong with {"en": text or [texts], ...}."""
    if not isinstance(captions, dict) or not captions:
        return [
            f"captions are {captions!r}; the rule is an object of language and text, with at least one (or text and --language)"
        ]
    found = []
    first: dict[str, str] = {}
    for language, texts in captions.items():
        if (same := first.setdefault(str(language).casefold(), language)) != language:
            found.append(
                f"caption languages {same!r} and {language!r} are one language; put their captions in one list"
            )
        if not (isinstance(language, str) and LANGUAGE_TAG.fullmatch(language)):
            found.append(f"caption language {language!r} is no language tag; write it like de, zh-Hant or ca-valencia")
        listed = texts if isinstance(texts, list) else [texts]
        if not listed or not all(map(is_caption, listed)):
            found.append(
                f"caption {language} is {texts!r}; the rule is text, or a list of texts, none empty or with characters of 0"
            )
    return found


def unicode_mistakes(record: Fields) -> list[str]:
    """Return which texts hold half a character ("\\ud800"), which JSON can spell and no file can hold."""
    return [
        f"{name} is {record[name]!r}, with {HALF}; the rule is Unicode text"
        for name in OWN_FIELDS
        if not is_unicode(json.dumps(record.get(name), ensure_ascii=False))
    ]


def _json(record: Fields) -> bytes:
    """Return what the shard keeps of a record that has passed the checks."""
    kept = {name: record[name] for name in OWN_FIELDS if name in record}
    kept["captions"] = {
        language: [" ".join(text.split()) for text in (texts if isinstance(texts, list) else [texts])]
        for language, texts in record["captions"].items()
    }
    return json.dumps(kept, ensure_ascii=False).encode()


def write_pairs(
    name: str, entries: Iterable[Entry], output: Path, options: Options
) -> tuple[Manifest, dict[str, list[str]]]:
    """Write the records as shards into the folder `output`; `name` is what messages call their source.

    Returns the manifest, and what was wrong with each record that was skipped, by where it stands. Raises UserError that
    lists every mistake, having left nothing behind, unless `skip_bad` is set.
    """
    check_output(output, MARKER, options.overwrite)
    regions = None if options.regions is None else RegionFolder(options.regions)
    if options.language is not None and not LANGUAGE_TAG.fullmatch(options.language):
        raise UserError(f"--language {options.language} is no language tag; write it like de, zh-Hant or ca-valencia.")
    checker, bad = _Checker(options, regions, unwanted=numbers_of(options.leave_out)), dict[str, list[str]]()
    with (
        staged_folder(output, MARKER, options.overwrite) as folder,
        ShardWriter(folder, "captions", options.samples_per_shard, origin=options.origin) as writer,
    ):
        for entry in entries:
            members, mistakes = checker.members(entry)
            if mistakes:
                bad[entry.where] = mistakes
            elif members and (not bad or options.skip_bad):  # else nothing will be kept
                writer.write(members)
        if bad and not options.skip_bad:
            raise UserError(f"{report(name, bad)}\nNothing was written. Mend them, or leave them out with --skip-bad.")
        if not writer.samples:
            raise UserError(f"{name} holds no usable record.\n{report(name, bad)}")
        writer.origin = {**options.origin, "captions_per_picture": checker.counts.per_picture()}
    if checker.left_out:
        sources = ", ".join(map(str, options.leave_out))
        say(f"{name}: {checker.left_out:,} records were left out, whose pictures are in {sources}.")
    for note in _unread(name, checker.unread):
        say(note)
    return writer.manifest, bad


def numbers_of(folders: Sequence[Path]) -> Numbers:
    """Return the numbers of the pictures of sources, sorted. Raises UserError where one does not know them."""
    found = [np.zeros(0, np.uint64)]
    for folder in folders:
        source = Source(folder, SourceConfig(path=str(folder)), (0, "", 0), 1, None, kind=CAPTIONS)
        if why := unknown(source):
            raise UserError(f"--leave-out {folder}: {why}")
        found.append(picture_numbers(source))
    return np.unique(np.concatenate(found))


def _unread(name: str, unread: Counter[str]) -> Iterator[str]:
    """Yield a line that names the fields that were not kept, if there are any."""
    if unread:
        listed = one_line(", ".join(f"{field} ({number:,})" for field, number in unread.most_common(8)))
        yield f"{name}: fields that are not kept: {listed}."


def report(name: str, bad: dict[str, list[str]]) -> str:
    """Return the mistakes as text: the first twenty with their places, and how many there are."""
    flat = [one_line(f"  {where}: {_cut(mistake)}") for where, mistakes in bad.items() for mistake in mistakes]
    more = [f"  ... and {len(flat) - LISTED} more"] if len(flat) > LISTED else []
    lines = [f"{name}: {len(flat)} mistakes in {len(bad)} records:", *flat[:LISTED], *more]
    return "\n".join(lines).encode(errors="backslashreplace").decode()  # half a character, which cannot be printed


def _cut(mistake: str) -> str:
    """Return a mistake without the middle of a value of thousands of characters."""
    return mistake if len(mistake) <= SHOWN else f"{mistake[: SHOWN // 2]} [...] {mistake[-SHOWN // 2 :]}"


def caption_counts(manifest: Manifest) -> str:
    """Return the languages with most captions first: "en 698, cs 698, ... (78 languages)"."""
    common = Counter(manifest.captions).most_common(8)
    more = f", ... ({len(manifest.captions)} languages)" if len(manifest.captions) > len(common) else ""
    return one_line(", ".join(f"{language} {count:,}" for language, count in common)) + more
