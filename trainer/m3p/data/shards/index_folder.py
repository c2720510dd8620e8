"""Index a whole folder of tars, in parallel and, after an interruption, from where it stopped; and write its manifest."""

import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from pydantic import TypeAdapter
from tqdm import tqdm

from m3p.atomic import final_path
from m3p.data.kinds import KINDS
from m3p.data.languages import LANGUAGE_TAG
from m3p.data.loader.die_with_parent import end_with
from m3p.data.shards.fingerprint import is_whole
from m3p.data.shards.index import index_tar
from m3p.data.shards.manifest import Kind, Manifest, write_manifest
from m3p.data.shards.notes import equal_pictures, notes, unusable_samples
from m3p.data.shards.shard_table import Shard, ShardTable
from m3p.data.shards.side_captions import side_path
from m3p.data.shards.tar_index import TarIndex
from m3p.errors import UserError
from m3p.locks import hold
from m3p.process_pool import process_pool
from m3p.terminal import one_line, say

PROGRESS = ".index.progress"
"""One JSON line for each tar that is done, locked by who is at work; deleted with the manifest written."""
_LINE = TypeAdapter(tuple[str, Kind, str, TarIndex])
FEW = 4
"""Tars a process below which starting it is not worth while."""
PATIENCE = 3.0
"""Seconds for which a lock may be held: the processes of a call that was killed end with it, but not at once."""
PACKED = re.compile(r"^[^.].*\.(tar\.(gz|bz2|xz|zst|lz4|Z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
"""Names of compressed tars, which would be left out beside plain ones."""
ALIKE = re.compile(r"\.tar(\.(part|partial|tmp|\d+))?$|\.zip$", re.IGNORECASE)
"""Names of files that hold samples as a rule; only NAME.tar is read."""
UNFIT = re.compile(r"[\\\ud800-\udfff]")
"""In the name of a tar: what is a separator on some systems, or bytes that are not UTF-8."""


def index_folder(
    folder: Path, kind: Kind, language: str | None = None, origin: dict[str, str] | None = None
) -> Manifest:
    """Index every *.tar in `folder` and write its manifest; tars made elsewhere are taken as they are.

    `origin` is what the manifest says of a published set; left out, what an earlier manifest of the folder says. `language` is
    needed for text; for captions it is the language of KEY.txt captions (English if left out).
    Raises UserError for no tars, no samples, nothing usable, or anything that `index_tar` refuses.
    """
    paths = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    _check_arguments(folder, paths, kind, language)
    if left_out := _left_out(folder):
        names = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else "")
        say(f"{folder}: not read: {names}; read are its files NAME.tar: rename, unpack or index the others apart.")
    with _alone(folder) as progress:
        found = _index_tars(paths, kind, language or "en", progress)
        told = _origin_before(folder) if origin is None else origin
        manifest = _manifest(folder, paths, found, kind, language).model_copy(update={"origin": told})
        _say_notes(folder, dict(zip((path.name for path in paths), found, strict=True)), manifest)
        write_manifest(folder, manifest)
        (folder / PROGRESS).unlink(missing_ok=True)
    return manifest


def _left_out(folder: Path) -> list[str]:
    """Return the names of what beside the tars of a folder holds samples by its name, and folders with tars of their own."""
    beside = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return [
        one_line(path.name)
        for path in beside
        if (path.is_dir() and any(path.glob("*.tar")))
        or (path.is_file() and path.suffix != ".tar" and ALIKE.search(path.name))
    ]


def _origin_before(folder: Path) -> dict[str, str]:
    """Return what the manifest that is there says of where its samples come from; nothing without a readable one."""
    try:
        return Manifest.load(folder).origin
    except UserError:  # none yet, or the one that is to be made again
        return {}


def _say_notes(folder: Path, tars: dict[str, TarIndex], manifest: Manifest) -> None:
    """Say what a user should know of the tars that were indexed."""
    shown = str(final_path(folder))
    for note in (*notes(shown, tars), *unusable_samples(shown, tars.values())):
        say(note)
    for note in equal_pictures(folder, manifest.shards) if KINDS[manifest.kind].has_pictures else ():
        say(note)


def _manifest(folder: Path, paths: list[Path], indexes: list[TarIndex], kind: Kind, language: str | None) -> Manifest:
    """Put together what the tars hold. Raises UserError where that is nothing to train on."""
    shown = final_path(folder)
    widths = {index.region_features: path.name for path, index in zip(paths, indexes, strict=True)}
    widths.pop(None, None)
    if len(widths) > 1:
        listed = ", ".join(f"{width} ({name})" for width, name in sorted(widths.items(), key=str))
        raise UserError(f"{shown}: region features of different widths: {listed}. Make them with one detector.")
    towers = {index.stored_tower: path.name for path, index in zip(paths, indexes, strict=True)}
    towers.pop(None, None)
    if len(towers) > 1:
        listed = ", ".join(f"{tower} ({name})" for tower, name in sorted(towers.items(), key=str))
        raise UserError(
            f"{shown}: features of different towers: {listed}. Make them with one (`m3p prepare features`)."
        )
    samples = sum(index.samples for index in indexes)
    unusable = sum(index.unusable for index in indexes)
    if samples == unusable:
        dotted = next((_undot(index.dotted) for index in indexes if index.dotted), "")
        reasons = sum((index.reasons for index in indexes), Counter[str]()).most_common(3)
        why = f" ({'; '.join(reason for reason, _ in reasons)})" if reasons else ""
        raise UserError(
            f"{shown}: none of its {samples} samples has {KINDS[kind].needs}{why}. Is --kind {kind} right?{dotted}"
        )
    captions = sum((index.captions for index in indexes), Counter[str]())
    plain = any(index.unnamed for index in indexes)
    return Manifest(
        kind=kind,
        language=language or "en" if KINDS[kind].needs_language or plain else None,
        samples=samples,
        captions=dict(sorted(captions.items())),
        region_features=next(iter(widths), None),
        stored_tower=next(iter(towers), None),
        without_picture=sum(index.without_picture for index in indexes),
        side_captions={
            path.name: index.side_captions for path, index in zip(paths, indexes, strict=True) if index.side_captions
        },
        shards=ShardTable(
            Shard(name=path.name, samples=index.samples, bytes=index.bytes, fingerprint=index.fingerprint)
            for path, index in zip(paths, indexes, strict=True)
        ),
    )


def _undot(name: str) -> str:
    """Say how the file `name`, which has a dot before its ending, would be taken as one of a sample of its own."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.rpartition(".")
    better = f"{folder}{slash}{stem.replace('.', '-')}.{ending}"
    return f" A key ends at the first dot of the file name: rename {name!r} to {better!r}, and all others like it."


@contextmanager
def _alone(folder: Path) -> Iterator[TextIO]:
    """Give the progress file to go on with, locked: two that index one folder would write the same files."""
    with hold(folder / PROGRESS, PATIENCE) as mine:
        if not mine:
            raise UserError(f"another `m3p index` is at work on {folder}: wait until it is done.")
        with (folder / PROGRESS).open("a+", encoding="utf-8", errors="replace") as progress:
            yield progress


def _index_tars(paths: list[Path], kind: Kind, language: str, progress: TextIO) -> list[TarIndex]:
    """Index the tars in parallel, those that an earlier, interrupted call has noted in `progress` excepted."""
    done = _read_progress(progress, kind, language)
    found = {path: done[_name(path)] for path in paths if _name(path) in done and path.with_suffix(".idx").is_file()}
    left = [path for path in paths if path not in found]
    with tqdm(total=len(paths), initial=len(found), unit="shard", desc="index", leave=False, disable=None) as bar:
        for path, index in _each(left, kind, language):
            found[path] = index
            progress.write(_LINE.dump_json((_name(path), kind, language, index)).decode() + "\n")
            progress.flush()
            bar.update()
    return [found[path] for path in paths]


def _each(paths: list[Path], kind: Kind, language: str) -> Iterator[tuple[Path, TarIndex]]:
    """Yield tars with their indexes; by as many processes as there are cores, where there is work for them."""
    cores = min(len(os.sched_getaffinity(0)), len(paths) // FEW)
    if cores <= 1:
        yield from ((path, index_tar(path, kind, language)) for path in paths)
        return
    # Forked before any thread of ours is started; a worker imports nothing and only walks tars.
    context = multiprocessing.get_context("fork")
    with process_pool(cores, context, end_with, (os.getpid(),)) as pool:
        under_way = {pool.submit(index_tar, path, kind, language): path for path in paths}
        try:
            for future in as_completed(under_way):
                yield under_way[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _name(path: Path) -> str:
    """Name a tar, and the captions beside it, with size and time, so that what was changed is indexed again."""
    files = [path, *(side for side in [side_path(path)] if side.exists())]
    return " ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)


def _read_progress(progress: TextIO, kind: Kind, language: str) -> dict[str, TarIndex]:
    """Return what an interrupted call has noted; its last line may be cut, and none need be of this program."""
    done: dict[str, TarIndex] = {}
    progress.seek(0)
    for line in progress:
        with suppress(ValueError):
            name, of_kind, of_language, index = _LINE.validate_json(line)
            if (of_kind, of_language) == (kind, language) and is_whole(index.fingerprint):
                done[name] = index
    return done


def _check_arguments(folder: Path, paths: list[Path], kind: Kind, language: str | None) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that holds the .tar files.")
    if packed := sorted(path.name for path in folder.iterdir() if PACKED.search(path.name)):
        more = f" and {len(packed) - 5} more" if len(packed) > 5 else ""
        raise UserError(
            f"{folder} holds tars that are compressed: {', '.join(packed[:5])}{more}. Samples are read by offset: decompress "
            "them (gunzip FILE.tar.gz, xz -d FILE.tar.xz, unzstd FILE.tar.zst, gunzip FILE.tgz), or move them to another folder."
        )
    if not paths:
        raise UserError(f"{folder} holds no .tar file: give the folder that holds the shards.")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is no file, nor a link to one: put the tar there, or take it out of the folder.")
        if UNFIT.search(path.name):
            raise UserError(
                f"{folder}: the tar's name {path.name!r} cannot be kept in a manifest; the rule is UTF-8 without \\: rename it."
            )
    if kind not in KINDS:
        raise UserError(f"--kind {kind} is no kind of samples; known are {', '.join(KINDS)}.")
    if KINDS[kind].needs_language and language is None:
        raise UserError(f"{folder}: {kind} needs its language: m3p index {folder} --kind {kind} --language xx.")
    if language is not None and not LANGUAGE_TAG.fullmatch(language):
        raise UserError(f"language {language!r} is no language tag; write it like de, zh-Hant or ca-valencia.")
