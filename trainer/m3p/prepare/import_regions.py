"""Published region features to a folder of regions.npz files, which `--regions` of the importers of captions reads."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from m3p.errors import UserError
from m3p.prepare.pairs import report
from m3p.prepare.region_folder import RECORD, NamedBy, RegionRecord, check_name, write_record, write_regions
from m3p.prepare.region_formats import find_format
from m3p.prepare.region_formats.stored import ReadOptions, Stored, stem
from m3p.prepare.regions import check_regions
from m3p.prepare.staging import staged_folder

MAX_NAMES = 16 << 20
"""Bytes of a file of class names."""


@dataclass
class Imported:
    """What an import did."""

    format: str
    named_by: NamedBy
    pictures: int = 0
    feature_size: int = 0
    """Width of the features."""
    classes: bool = False
    """Whether the regions have classes."""
    bad: dict[str, list[str]] = field(default_factory=dict)
    """What is wrong with a picture, by where it stands."""


def import_regions(
    source: Path,
    output: Path,
    options: ReadOptions,
    format_name: str | None = None,
    named_by: NamedBy | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Imported:
    """Write the regions of every picture of `source` into the folder `output`, whole or not at all.

    `format_name` and `named_by` are found out where they are None. Raises UserError that lists every mistake, having left nothing
    behind, unless `skip_bad` is set.
    """
    name, format_ = find_format(source, format_name)
    done = Imported(name, named_by or format_.named_by)
    first: dict[str, str] = {}
    with staged_folder(output, RECORD, overwrite) as folder:
        for stored in format_.read(source, options):
            try:
                _write(folder, stored, done, first)
            except ValueError as error:
                done.bad[stored.where] = [f"{stored.name!r}: {error}" if stored.name else str(error)]
        if done.bad and not skip_bad:
            raise UserError(
                f"{report(str(source), done.bad)}\nNothing was written. Mend them, or leave them out with --skip-bad."
            )
        if not done.pictures:
            raise UserError(f"{source} holds no usable picture.\n{report(str(source), done.bad)}")
        made_from = {"format": name, "file": source.resolve().name, "classes": str(options.keep_classes)}
        write_record(folder, RegionRecord(named_by=done.named_by, made_from=made_from))
    return done


def _write(folder: Path, stored: Stored, done: Imported, first: dict[str, str]) -> None:
    """Write one picture. Raises ValueError with what is wrong with it."""
    if isinstance(stored.regions, str):
        raise ValueError(stored.regions)
    name = check_name(stem(stored.name) if done.named_by is NamedBy.IMAGE else stored.name)
    if first.setdefault(name, stored.where) != stored.where:
        raise ValueError(f"is in {first[name]} already; the rule is one row a picture")
    arrays = check_regions(stored.regions)
    width = arrays["features"].shape[1]
    if width != (done.feature_size or width):
        raise ValueError(f"features are {width} wide, those before it {done.feature_size}")
    write_regions(folder, name, arrays)
    done.feature_size, done.classes, done.pictures = width, "class_ids" in arrays, done.pictures + 1


def read_class_names(path: Path) -> dict[str, int]:
    """Return the number of each class: of VinVL's JSON with `label_to_idx`, or of a text file, a name a line, from 0.

    Raises UserError.
    """
    if not path.is_file():
        raise UserError(
            f"--class-names {path} does not exist: give a text file, a name a line, or JSON with label_to_idx."
        )
    with path.open("rb") as file:
        content = file.read(MAX_NAMES + 1)
    try:
        text = content.decode("utf-8")
        if path.suffix != ".json":
            lines = [line.strip() for line in text.splitlines()]
            return {name: number for number, name in enumerate(lines) if name}
        found = json.loads(text)["label_to_idx"]
        return {str(name): int(number) for name, number in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"--class-names {path}: cannot be read ({error!r}); want names, or JSON with label_to_idx."
        ) from None
