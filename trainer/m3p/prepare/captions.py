"""Captioned pictures from a JSONL file to shards: every record is checked before anything is written."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from m3p.data.languages import LANGUAGE_TAG
from m3p.data.shards.manifest import Manifest
from m3p.errors import BadSample, UserError
from m3p.prepare.regions import load_regions, pack_regions
from m3p.prepare.shards import ShardWriter
from m3p.prepare.staging import check_output, staged_folder
from m3p.visual.decode import decode

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""PIL's name of a format to the extension in the shard. MPO is what some cameras call a JPEG."""

KEPT = ("id", "concept", "category", "captions")
"""Fields of a record that the shard keeps."""
LARGEST = 10**9
"""Pixels of a picture: PIL has a bound of its own, below it."""
LISTED = 20
MARKER = "manifest.json"


class RecordChecker:
    """Checks records one by one; remembers, of the good ones, the ids and the width of the first region features."""

    def __init__(self, folder: Path, regions: Path | None) -> None:
        self.folder, self.regions = folder, regions
        self.first_line: dict[str, int] = {}
        self.width: tuple[int, str] | None = None

    def mistakes(self, line: bytes, number: int) -> list[str]:
        """Return what is wrong with the record on line `number`: nothing, one or several sentences."""
        width = self.width
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            return [f"broken JSON: {error}"]
        if not isinstance(record, dict):
            return [f"the record is {type(record).__name__}; the rule is an object with id, image and captions"]
        found = self._id_mistakes(record.get("id")) + self._image_mistakes(record.get("image"))
        found += caption_mistakes(record.get("captions"))
        for name in ("concept", "category"):
            if not isinstance(record.get(name, ""), str):
                found.append(f"{name} is {record[name]!r}; the rule is text")
        if record.get("concept") == "":
            found.append("concept is ''; the rule is text that names it: leave it out where there is none")
        found += unicode_mistakes(record)
        if self.regions is not None and isinstance(record.get("id"), str):
            found += self._region_mistakes(record["id"])
        if found:
            self.width = width
        else:
            self.first_line[record["id"]] = number
        return found

    def _id_mistakes(self, identity: object) -> list[str]:
        if not isinstance(identity, str) or not identity:
            return [f"id is {identity!r}; the rule is text that names the record"]
        first = self.first_line.get(identity)
        return [f"id {identity!r} is that of line {first} again; ids name one record each"] if first else []

    def _image_mistakes(self, image: object) -> list[str]:
        if not isinstance(image, str) or not image:
            return [f"image is {image!r}; the rule is a path, relative to the JSONL file"]
        path = self.folder / image
        try:
            content = path.read_bytes()
            image_extension(content)
            # At an eighth of its size if it is a JPEG, which still reads all of it.
            decode(content, size=1, max_pixels=LARGEST)
        except (FileNotFoundError, IsADirectoryError):
            return [f"image {image!r} does not exist (looked for {path})"]
        except (OSError, ValueError, Image.DecompressionBombError, BadSample) as error:
            return [f"image {image!r} cannot be used: {error}"]
        return []

    def _region_mistakes(self, identity: str) -> list[str]:
        assert self.regions is not None
        if "/" in identity or "\\" in identity:
            return [f"id {identity!r} names no file; with --regions the rule is an id without slashes"]
        name = f"{identity}.npz"
        try:
            width = load_regions(self.regions / name)["features"].shape[1]
        except ValueError as error:
            return [f"regions {name!r}: {error}"]
        self.width = self.width or (width, name)
        if width != self.width[0]:
            return [f"regions {name!r}: features are {width} wide, those of {self.width[1]!r} {self.width[0]}"]
        return []


def image_extension(content: bytes) -> str:
    """Return the extension of a picture from its own header. Raises ValueError for formats that shards do not take."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            name = image.format
    except UnidentifiedImageError:  # whose own text names an address in memory
        name = "unknown"
    if name not in EXTENSIONS:
        raise ValueError(f"its format is {name}; the rule is JPEG, PNG or WebP")
    return EXTENSIONS[name]


def caption_mistakes(captions: object) -> list[str]:
    """Return what is wrong with {"en": text or [texts], ...}."""
    if not isinstance(captions, dict) or not captions:
        return [f"captions are {captions!r}; the rule is an object of language and text, with at least one"]
    found = []
    for language, texts in captions.items():
        if not LANGUAGE_TAG.fullmatch(language):
            found.append(f"caption language {language!r} is no language tag; write it like de, zh-Hant or ca-valencia")
        listed = texts if isinstance(texts, list) else [texts]
        if not listed or not all(isinstance(text, str) and text.strip() for text in listed):
            found.append(f"caption {language} is {texts!r}; the rule is text, or a list of texts, none empty")
    return found


def unicode_mistakes(record: dict[str, Any]) -> list[str]:
    """Return which texts hold half a character ("\\ud800"), which JSON can spell and no file can hold."""
    found = []
    for name in KEPT:
        try:
            json.dumps(record.get(name), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            found.append(
                f"{name} is {record[name]!r}, with half a character (\\ud800 to \\udfff); the rule is Unicode text"
            )
    return found


def prepare_captions(
    source: Path,
    output: Path,
    regions: Path | None = None,
    skip_bad: bool = False,
    samples_per_shard: int = 1000,
    overwrite: bool = False,
) -> tuple[Manifest, dict[int, list[str]]]:
    """Write the records of the JSONL file `source` as shards into the folder `output`.

    `regions` is a folder of ID.npz. Returns the manifest, and what was wrong on each line that was skipped.
    Raises UserError that lists every mistake, having written nothing, unless `skip_bad` is set.
    """
    check_output(output, MARKER, overwrite)
    if not source.is_file():
        raise UserError(f"{source} does not exist: give a JSONL file, one record a line.")
    if regions is not None and not regions.is_dir():
        raise UserError(f"--regions {regions} is not a folder: give the folder that holds ID.npz files.")
    checker = RecordChecker(source.parent, regions)
    bad = {}
    for number, line in _lines(source, "check"):
        mistakes = checker.mistakes(line, number)
        if mistakes:
            bad[number] = mistakes
    if bad and not skip_bad:
        raise UserError(f"{report(source, bad)}\nNothing was written. Mend them, or leave them out with --skip-bad.")
    with (
        staged_folder(output, MARKER, overwrite) as folder,
        ShardWriter(folder, "captions", samples_per_shard) as writer,
    ):
        for number, line in _lines(source, "write"):
            if number not in bad:
                writer.write(to_members(json.loads(line), source.parent, regions))
        if not writer.samples:
            raise UserError(f"{source} holds no usable record.\n{report(source, bad)}")
    return writer.manifest, bad


def report(source: Path, bad: dict[int, list[str]]) -> str:
    """Return the mistakes as text: the first twenty with their lines, and how many there are of each kind of line."""
    flat = [f"  line {number}: {mistake}" for number, mistakes in bad.items() for mistake in mistakes]
    more = [f"  ... and {len(flat) - LISTED} more"] if len(flat) > LISTED else []
    lines = [f"{source}: {len(flat)} mistakes in {len(bad)} records:", *flat[:LISTED], *more]
    return "\n".join(lines).encode(errors="backslashreplace").decode()  # half a character, which cannot be printed


def to_members(record: dict[str, Any], folder: Path, regions: Path | None) -> dict[str, bytes]:
    """Return the members of one sample; `record` must have passed the checks."""
    image = (folder / record["image"]).read_bytes()
    kept: dict[str, Any] = {name: record[name] for name in KEPT if name in record}
    kept["captions"] = {
        language: [" ".join(text.split()) for text in (texts if isinstance(texts, list) else [texts])]
        for language, texts in record["captions"].items()
    }
    members = {image_extension(image): image, "json": json.dumps(kept, ensure_ascii=False).encode()}
    if regions is not None:
        members["regions.npz"] = pack_regions(load_regions(regions / f"{record['id']}.npz"))
    return members


def caption_counts(manifest: Manifest) -> str:
    """Return the languages with most captions first: "en 698, cs 698, ... (78 languages)"."""
    common = Counter(manifest.captions).most_common(8)
    more = f", ... ({len(manifest.captions)} languages)" if len(manifest.captions) > len(common) else ""
    return ", ".join(f"{language} {count:,}" for language, count in common) + more


def _lines(source: Path, what: str) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line) of the lines that are not blank, with a bar of bytes."""
    total = source.stat().st_size
    with source.open("rb") as file, tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=None) as bar:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line
            bar.update(len(line))
