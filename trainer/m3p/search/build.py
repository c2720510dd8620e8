"""`m3p index-pictures`: embeds pictures into an index, part by part, and takes pictures out of one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from m3p.atomic import publish
from m3p.errors import BadSample, UserError
from m3p.locks import hold
from m3p.retrieval.scoring import scorer_of
from m3p.runs import Run, open_run
from m3p.search import nearest
from m3p.search.checked import file_checksum, write_checked
from m3p.search.collection import Collection, Found, Origin, open_collection
from m3p.search.faiss_library import faiss_library
from m3p.search.index import (
    BUILT,
    SETTINGS,
    Built,
    Settings,
    built_parts,
    check_weights,
    load_nearest,
    read_built,
    read_settings,
)
from m3p.search.parts import FOLDER, PART_ROWS, Entry, Floats, Part, read_parts, write_part
from m3p.terminal import one_line

BATCH = 64
"""Pictures that are decoded and forwarded at once."""
SHOWN = 3
"""Pictures that cannot be read which a message names."""
TRAIN_AGAIN = 2
"""An index whose pictures have become this many times those that it was trained on is trained again."""


@dataclass
class Report:
    """What a command did to an index."""

    added: int = 0
    removed: int = 0
    known: int = 0
    """Pictures that were there already, from an earlier or a killed call."""
    repeated: int = 0
    """Pictures whose content was there already under another id."""
    skipped: int = 0
    """Pictures that cannot be read."""
    unreadable: list[str] = field(default_factory=list)
    """The first of them, with the reason."""
    gone: int = 0
    """Pictures of the index that are not in their folder any more, and are found all the same."""
    missing: list[str] = field(default_factory=list)
    """The first of them."""
    clashes: list[str] = field(default_factory=list)
    """Pictures that are left out since another one has their id: a file that has changed, or an id twice."""
    pictures: int = 0
    """Pictures of the index now."""
    search: str = ""
    """How it is searched, in words."""

    def skip(self, place: str, reason: BadSample) -> None:
        """Note a picture that cannot be read."""
        self.skipped += 1
        if len(self.unreadable) < SHOWN:
            self.unreadable.append(f"{place}: {reason}")


@dataclass
class _Known:
    """What an index holds already."""

    ids: dict[str, str]
    """id -> place."""
    contents: set[str]
    places: dict[tuple[int, str], tuple[str, str]]
    """(origin, place) -> stamp and content."""

    def add(self, origin: int, place: str, stamp: str, id: str, content: str) -> None:
        """Note a picture."""
        self.ids[id] = place
        self.contents.add(content)
        self.places[origin, place] = stamp, content


def index_pictures(
    path: Path, pictures: Path, folder: Path, add: bool = False, part_rows: int = PART_ROWS, prune: bool = False
) -> Report:
    """Embed the pictures of shards or of a folder by the run `path`, into the index `folder`, made if it is not there.

    What an earlier call has finished is not done again: a killed call is gone on with by the same command. Pictures of
    another place are taken with `add` alone. With `prune`, those whose file is gone are taken out first. Raises UserError.
    """
    faiss_library()
    run = open_run(path)
    check_embeds(run)
    assert run.recipe.visual is not None, "a task that embeds pictures wants a visual section"
    collection = open_collection(pictures, run.recipe.visual)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with hold(folder / "lock", 0) as held:
        _check_held(held, folder)
        settings = _settings(path, run, folder, collection.origin, add)
        report, origin = Report(), _number_of(settings, collection.origin)
        if prune:
            report.removed = _prune(folder, settings, collection, origin)
        _embed(run, collection, origin, folder, part_rows, report)
        _finish(folder, settings, report)
    if report.clashes:  # all others are in the index, which is whole
        raise UserError(
            f"{collection.origin.path}: {len(report.clashes):,} pictures are left out, under whose ids the index has other "
            f"pictures: {'; '.join(report.clashes[:SHOWN])}; take those out with --remove first, or give each its own id"
        )
    return report


def check_embeds(run: Run) -> None:
    """Raise UserError where the run has no dual encoder."""
    if not any(task.embeds for task in run.recipe.tasks):
        names = ", ".join(task.name for task in run.recipe.tasks)
        raise UserError(f"{run.folder}: it was trained on {names}, none of which learns to compare embeddings")


def remove_pictures(folder: Path, ids: Sequence[str]) -> Report:
    """Take the pictures with these ids out of an index, vectors and all. Raises UserError, naming ids that it does not have."""
    faiss_library()
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{folder}: no index of pictures to remove from")
    with hold(folder / "lock", 0) as held:
        _check_held(held, folder)
        settings = read_settings(folder)
        wanted, parts, report = set(ids), read_parts(folder), Report()
        _check_removal(folder, wanted, parts, _is_finished(folder, parts))
        report.removed = _drop(folder, settings, parts, lambda entry: entry.id in wanted)
        return _finish(folder, settings, report)


def _drop(folder: Path, settings: Settings, parts: Sequence[Part], unwanted: Callable[[Entry], bool]) -> int:
    """Write the parts that hold unwanted pictures again, without them and their vectors; return how many these are."""
    dropped = 0
    for part in parts:
        entries = part.table().entries()
        kept = np.array([not unwanted(entry) for entry in entries], bool)
        if not kept.all():
            left = [entry for entry, keep in zip(entries, kept, strict=True) if keep]
            write_part(folder, part.number, left, part.vectors(settings.width)[kept])
            dropped += int((~kept).sum())
    return dropped


def _prune(folder: Path, settings: Settings, collection: Collection, origin: int) -> int:
    """Take out the pictures of an origin that are not there any more; return how many these are. Raises UserError: all are."""
    there, parts = {place for place, _ in collection.places()}, read_parts(folder)
    if there.isdisjoint(entry.place for part in parts for entry in part.table().entries() if entry.origin == origin):
        raise UserError(
            f"--prune: none of the pictures that {folder} has of {collection.origin.path} is there: is the folder the right one?"
        )
    return _drop(folder, settings, parts, lambda entry: entry.origin == origin and entry.place not in there)


def _is_finished(folder: Path, parts: Sequence[Part]) -> bool:
    path = folder / BUILT
    return path.is_file() and read_built(folder).parts == built_parts(parts)


def _check_removal(folder: Path, wanted: set[str], parts: Sequence[Part], finished: bool) -> None:
    """Raise UserError where no picture would be left, or an id is not in a finished index: a killed removal has taken some."""
    held = [one for part in parts for one in part.table().id]
    absent = sorted(wanted.difference(held))
    if absent and finished:
        shown = ", ".join(repr(one) for one in absent[:SHOWN])
        raise UserError(
            f"{folder}: no picture has the id {shown} ({len(absent):,} of {len(wanted):,} are not there); nothing is removed"
        )
    if wanted.issuperset(held):
        raise UserError(f"{folder}: these are all of its pictures; delete the folder instead")


def _check_held(held: bool, folder: Path) -> None:
    if not held:
        raise UserError(f"{folder}: another process is changing this index; wait for its end")


def _settings(path: Path, run: Run, folder: Path, origin: Origin, add: bool) -> Settings:
    """Return the settings of the index, with `origin` among its origins, and write them."""
    file = folder / SETTINGS
    if not file.is_file():
        if read_parts(folder):  # embedded by nobody knows whom
            raise UserError(
                f"{folder}: has pictures, but no {SETTINGS}: put it back, or delete {folder} and begin anew"
            )
        recipe = run.recipe.model_dump(mode="json", exclude_none=True)
        width = run.recipe.model.projection or run.model.text.words.embedding_dim
        made = Settings(run=str(path.absolute()), record=run.record, recipe=recipe, width=width, origins=[origin])
    else:
        found = read_settings(folder)
        check_weights(folder, found, run)
        old = {one.path: one for one in found.origins}
        if origin.path not in old and not add:
            raise UserError(
                f"{folder}: holds pictures of {', '.join(old)}; to take those of {origin.path} too, give --add"
            )
        _check_unchanged(folder, old.get(origin.path, origin), origin)
        made = found.model_copy(update={"origins": list({**old, origin.path: origin}.values())})
    write_checked(file, made)
    return made


def _check_unchanged(folder: Path, before: Origin, now: Origin) -> None:
    """Raise UserError where shards that were indexed are gone or others now; new ones may have come."""
    changed = [name for name, fingerprint in before.shards.items() if now.shards.get(name) != fingerprint]
    if changed or before.kind != now.kind:
        names = ", ".join(changed[:SHOWN])
        raise UserError(f"{folder}: {now.path} has changed since it was indexed ({names}); make a new index")


def _number_of(settings: Settings, origin: Origin) -> int:
    return [one.path for one in settings.origins].index(origin.path)


def _embed(run: Run, collection: Collection, origin: int, folder: Path, rows: int, report: Report) -> None:
    """Write parts of the pictures that are not there yet. Decoded pictures of one batch alone are in memory."""
    parts = read_parts(folder)
    number = max((part.number for part in parts), default=-1) + 1
    scorer = scorer_of(run, BATCH)
    fresh = _fresh(collection, origin, _known(parts), report)
    entries: list[Entry] = []
    vectors: list[Floats] = []
    while batch := list(islice(fresh, min(BATCH, rows - len(entries)))):
        vectors.append(scorer.embed_pictures([found.visual for _, _, found in batch]))
        for place, stamp, found in batch:
            entries.append(
                Entry(len(entries), found.id, origin, place, stamp, found.content, found.caption, found.language)
            )
        if len(entries) == rows:
            write_part(folder, number, entries, np.concatenate(vectors))
            report.added += len(entries)
            number, entries, vectors = number + 1, [], []
    if entries:
        write_part(folder, number, entries, np.concatenate(vectors))
        report.added += len(entries)


def _known(parts: Sequence[Part]) -> _Known:
    """Return what is in the index."""
    known = _Known({}, set(), {})
    for part in parts:
        for entry in part.table().entries():
            known.add(entry.origin, entry.place, entry.stamp, entry.id, entry.content)
    return known


def _fresh(collection: Collection, origin: int, known: _Known, report: Report) -> Iterator[tuple[str, str, Found]]:
    """Yield place, stamp and picture of what the index does not have."""
    places = tqdm(collection.places(), desc=one_line(collection.origin.path), unit="picture", leave=False, disable=None)
    gone = {place for number, place in known.places if number == origin}
    for place, stamp in places:
        gone.discard(place)
        before = known.places.get((origin, place))
        if before is not None and before[0] == stamp:
            report.known += 1
            continue
        try:
            found = collection.read(place)
        except BadSample as reason:
            report.skip(place, reason)
            continue
        if before is not None and before[1] == found.content:
            report.known += 1  # a file that was copied or touched, with the same picture in it
            continue
        if found.content in known.contents and before is None:
            report.repeated += 1
            continue
        if found.id in known.ids:
            report.clashes.append(f"{place} has the id {found.id!r}, of {known.ids[found.id]}")
            continue
        known.add(origin, place, stamp, found.id, found.content)
        yield place, stamp, found
    report.gone, report.missing = len(gone), sorted(gone)[:SHOWN]


def _finish(folder: Path, settings: Settings, report: Report) -> Report:
    """Bring what search uses up to date with the parts."""
    parts = read_parts(folder)
    report.pictures = sum(len(part.numbers) for part in parts)
    if not report.pictures:
        reason = (
            f": none of {report.skipped:,} can be read; the first: {report.unreadable[0]}" if report.skipped else ""
        )
        raise UserError(f"{folder}: {settings.origins[0].path} has no picture that could be indexed{reason}")
    old = read_built(folder) if (folder / BUILT).is_file() else None
    built = old
    if old is None or old.parts != built_parts(parts):
        built = build_nearest(folder, settings.width, parts, old)
    assert built is not None
    report.search = describe(built)
    return report


def build_nearest(folder: Path, width: int, parts: Sequence[Part], old: Built | None) -> Built:
    """Make what search uses from the parts, write it, and return what is in it; `old` is gone on from where that is possible."""
    total = sum(len(part.numbers) for part in parts)
    built = Built(parts=built_parts(parts), pictures=total)
    if total > nearest.MAX_FLAT:
        if old and old.file and total <= TRAIN_AGAIN * old.trained_on <= TRAIN_AGAIN**2 * total:
            index, held, trained_on = load_nearest(folder, old), None, old.trained_on
        else:
            index, held, trained_on = nearest.train(parts, width), np.zeros(0, np.int64), total
        nearest.update(index, parts, width, nearest.numbers_in(index) if held is None else held)
        probes, share = nearest.calibrate(index, parts, width)
        more = {"trained_on": trained_on, "probes": probes, "share_found": share}
        built = built.model_copy(update={**more, **_write_nearest(folder, index)})
    write_checked(folder / BUILT, built)
    for path in folder.glob("nearest-*.faiss"):
        if path.name != built.file:
            path.unlink()
    return built


def _write_nearest(folder: Path, index: Any) -> dict[str, str]:
    """Write the faiss index and return what `Built` says of its file."""
    aside = folder / ".nearest.partial"
    nearest.write_index(index, aside)
    digest = file_checksum(aside)
    name = f"nearest-{digest}.faiss"
    publish(aside, folder / name)
    return {"file": name, "checksum": digest}


def describe(built: Built) -> str:
    """Return how an index is searched, in words."""
    if not built.file:
        return f"{built.pictures:,} pictures, searched exactly (flat)"
    return (
        f"{built.pictures:,} pictures, searched by IVF-PQ; {built.probes} lists a query find {100 * built.share_found:.1f} % of "
        f"the {nearest.NEIGHBOURS} nearest of its own pictures"
    )
