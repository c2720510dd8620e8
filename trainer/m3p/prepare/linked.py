"""Tars that others made, as they are, as a source of a published set: linked, and described by a manifest of its own.

With files of captions beside them (side_files.py), a picture's captions are those of the files: no tar is written again.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import webdataset
from numpy.typing import NDArray

from m3p.data.identity import Numbers
from m3p.data.records import choose_captions, read_record, text_files
from m3p.data.shards.index import scan_tar
from m3p.data.shards.index_folder import index_folder
from m3p.data.shards.manifest import NOT_STATED, Manifest
from m3p.data.shards.side_captions import side_path
from m3p.data.shards.tar_samples import TarSample, shown_samples, tar_samples
from m3p.errors import BadSample, UserError
from m3p.prepare.pairs import MARKER, CaptionCounts, numbers_of, report
from m3p.prepare.side_files import CaptionTable, SideFile
from m3p.prepare.staging import staged_folder
from m3p.terminal import say
from m3p.unicode_text import is_unicode

KEY = "key"
"""Value of `by` for which the name of the sample in its tar counts, whatever its JSON says."""
TABLE = ".side-captions.sqlite"


@dataclass(frozen=True)
class Side:
    """Captions that come from files beside the tars."""

    files: Sequence[SideFile]
    by: str
    """Field of KEY.json, and of the files, by which they are joined; `key` is the sample's name in its tar."""
    keep_own: bool = False
    """Whether the tars' own captions stay, beside those of the files."""
    skip_bad: bool = False
    """Leave wrong records of the files out instead of refusing all."""


@dataclass
class _Joined:
    """Counts of a join."""

    samples: int = 0
    found: int = 0
    """Samples with captions of the files."""
    bad: dict[str, list[str]] = field(default_factory=dict)


def link_shards(
    source: Path,
    output: Path,
    origin: dict[str, str],
    language: str | None = None,
    side: Side | None = None,
    overwrite: bool = False,
    leave_out: Sequence[Path] = (),
) -> Manifest:
    """Make `output` a source of the tars of the folder `source`, which it links to.

    Only a tar with pictures that are left out is written again, without them, into `output`.

    Args:
        source: holds uncompressed .tar files, such as img2dataset's.
        output: new or empty; gets a link, an index and, with `side`, a file of captions for each tar, and the manifest.
        origin: what the manifest says of the set.
        language: of captions in the tars that name none (English if left out).
        side: captions from files, in place of those in the tars.
        overwrite: replace what an earlier call wrote.
        leave_out: sources whose pictures are left out, such as those of a test.

    Raises UserError for what cannot be read, for wrong records of the files, and where no picture has a caption there.
    """
    tars = sorted(path for path in source.glob("*.tar") if not path.name.startswith(".")) if source.is_dir() else []
    if not tars:
        raise UserError(f"{source} holds no .tar file: give the folder that holds the tars.")
    with staged_folder(output, MARKER, overwrite) as folder:
        left_out = _link(tars, folder, numbers_of(leave_out), language or "en")
        if leave_out:
            say(
                f"{source}: {left_out:,} pictures were left out, which are in {', '.join(map(str, leave_out))}; tars without "
                "one are linked."
            )
        if side is not None:
            _write_captions(folder, tars, source, language or "en", side)
        per_picture = _per_picture(folder, language or "en")
        return index_folder(folder, "captions", language, {**origin, "captions_per_picture": per_picture})


def _link(tars: Sequence[Path], folder: Path, unwanted: Numbers, language: str) -> int:
    """Link the tars into `folder`; one with pictures among the `unwanted` is copied without them. Return how many these are."""
    left_out = 0
    for tar in tars:
        keep = np.ones(0, np.bool_)
        if unwanted.size:
            index = scan_tar(tar, "captions", language)[1]
            columns = [np.frombuffer(column, np.uint64) for column in (index.contents, index.published)]
            keep = ~np.any([np.isin(column, unwanted) for column in columns], axis=0)
        if keep.all():
            (folder / tar.name).symlink_to(os.path.relpath(tar.resolve(), folder.resolve()))
        elif keep.any():
            _copy(tar, folder / tar.name, keep)
        left_out += int((~keep).sum())
    if not any(folder.glob("*.tar")):
        raise UserError(
            "--leave-out: every picture of the tars is in what is to be left out; nothing would be there to train on"
        )
    return left_out


def _copy(tar: Path, copy: Path, keep: NDArray[np.bool_]) -> None:
    """Write the samples of a tar that `keep` [samples] names."""
    with copy.open("wb") as file:
        writer = webdataset.TarWriter(file, user="m3p", group="m3p", mode=0o644, mtime=0, encoder=False)
        for sample, kept in zip(tar_samples(tar), keep.tolist(), strict=True):
            if kept:
                writer.write({"__key__": sample.key, **sample.members})
        writer.close()


def _per_picture(folder: Path, language: str) -> str:
    """Return how many captions a picture has, as a manifest says it."""
    counts = CaptionCounts()
    for tar in sorted(folder.glob("*.tar")):
        for sample in shown_samples(tar, _is_text):
            with suppress(BadSample):  # the index counts what cannot be read
                counts.add(choose_captions(read_record(sample.members, language).captions, None))
    return counts.per_picture() if counts.lowest else NOT_STATED


def _write_captions(folder: Path, tars: Sequence[Path], source: Path, language: str, side: Side) -> None:
    """Write the file of captions beside each link. Raises UserError."""
    names = ", ".join(str(file.path) for file in side.files)
    joined = _Joined()
    with CaptionTable(folder / TABLE, side.by) as table:
        bad = table.add(side.files)
        if bad and not side.skip_bad:
            raise UserError(f"{report(names, bad)}\nNothing was written. Mend them, or leave them out with --skip-bad.")
        for tar in sorted(folder.glob("*.tar")):
            with side_path(tar).open("wb") as file:
                file.writelines(line + b"\n" for line in _lines(tar, table, language, side, joined))
        values, unused = table.counts()
        if not joined.found:
            asked = next((value for sample in tar_samples(tars[0], _is_text) if (value := _value(sample, side.by))), "")
            raise UserError(
                f"{names}: none of their {values:,} values of {side.by} is that of a picture of {source}, which has "
                f"{asked or 'none'!r}, where they have {table.example()!r}: name another field with --by, such as url or key."
            )
    if bad:
        say(f"skipped: {report(names, bad)}")
    say(f"{names}: captions of {values - unused:,} pictures; {unused:,} belong to no picture of {source}.")
    if left := joined.samples - joined.found:
        rest = "keep their own captions" if side.keep_own else "have no caption: training skips them"
        say(f"{source}: {left:,} of {joined.samples:,} pictures are not in {names}, and {rest}.")


def _lines(tar: Path, table: CaptionTable, language: str, side: Side, joined: _Joined) -> Iterator[bytes]:
    """Yield the line of each sample of a tar."""
    for sample in tar_samples(tar, _is_text):
        joined.samples += 1
        value = _value(sample, side.by)
        captions = table.captions(value) if value else {}
        joined.found += bool(captions)
        name, published, own = _own(sample, language, side.keep_own)
        captions = {**own, **captions}
        if captions:
            key = sample.key.encode(errors="backslashreplace").decode()  # bytes that are not UTF-8 are spelled
            record = {"id": name or key, "captions": captions, **published}
            yield json.dumps(record, ensure_ascii=False).encode()
        else:
            yield b""


def _own(sample: TarSample, language: str, captions: bool) -> tuple[str, dict[str, str], dict[str, list[str]]]:
    """Return id, published id and, if they are wanted, captions that a sample has in its tar."""
    try:
        record = read_record(sample.members, language)
        own = choose_captions(record.captions, None) if captions else {}
    except BadSample:
        return "", {}, {}
    published = {"published_id": record.published} if record.published else {}
    return record.id, published, own


def _value(sample: TarSample, by: str) -> str:
    """Return the value by which the captions of a sample are found; "" where it has none, or one that is not Unicode text."""
    value = sample.key.rpartition("/")[2] if by == KEY else _field(sample, by)
    return value if is_unicode(value) else ""


def _field(sample: TarSample, by: str) -> str:
    """Return a field of a sample's JSON as text; "" where it has none."""
    try:
        fields = json.loads(sample.members.get("json", b"{}"))
    except (ValueError, RecursionError):
        return ""
    value = fields.get(by) if isinstance(fields, dict) else None
    return str(value).strip() if isinstance(value, str | int) else ""


def _is_text(extension: str) -> bool:
    return extension == "json" or bool(text_files([extension]))
