"""Run a detector over pictures: one npz of regions a picture. A picture that is finished is not done again."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from m3p.content_hash import hash_bytes
from m3p.errors import BadSample, UserError
from m3p.locks import hold
from m3p.prepare.captions import read_jsonl
from m3p.prepare.detector import Detector, Inputs
from m3p.prepare.pictures import LARGEST, PictureFolder
from m3p.prepare.region_folder import (
    NamedBy,
    RegionRecord,
    check_name,
    feature_size,
    is_done,
    read_record,
    write_record,
    write_regions,
)
from m3p.prepare.regions import check_regions
from m3p.visual.decode import IMAGE_KINDS, decode

LOCK_PATIENCE = 1.0
"""Seconds for which a command that was killed may still hold the output."""
WINDOW = 4
"""Batches of pictures that are read together, so that those of one size can share a batch."""
FULL_SIZE = 1 << 16
"""Side that no JPEG has: decoding to at least this gives the picture at its own size."""


class Named(NamedTuple):
    """A picture that is to be done."""

    name: str
    """Its regions go to NAME.npz."""
    image: str
    """Its path in the folder of the pictures."""


@dataclass
class Detected:
    """What a run did."""

    made: int = 0
    """Pictures whose regions were written now."""
    found: int = 0
    """Pictures whose regions were there already."""
    bad: dict[str, list[str]] = field(default_factory=dict)
    """What is wrong with a picture, by its path or by where its record stands."""
    feature_size: int | None = None
    """Width of a region's feature; None where no picture was usable."""


def pictures_of_folder(folder: Path) -> Iterator[Named | tuple[str, str]]:
    """Yield the pictures of a folder, by the names of their files; or the name of one with what is wrong with it.

    Raises UserError where there are none.
    """
    kinds = {f".{kind}" for kind in IMAGE_KINDS}
    names = sorted(
        path.name for path in folder.iterdir() if path.suffix.lower() in kinds and not path.name.startswith(".")
    )
    if not names:
        raise UserError(f"{folder} holds no pictures: none of its files ends in {', '.join(sorted(kinds))}.")
    first: dict[str, str] = {}
    for name in names:
        stem = Path(name).stem
        other = first.setdefault(stem, name)
        if other == name:
            yield Named(stem, name)
        else:
            yield name, f"its regions would have the name of those of {other!r}, {stem}.npz; rename one of the pictures"


def pictures_of_records(source: Path) -> Iterator[Named | tuple[str, str]]:
    """Yield the pictures of the records of a JSONL file, by their ids; or where a record stands with what is wrong with it."""
    first: dict[str, str] = {}
    for where, record in read_jsonl(source):
        if not isinstance(record, dict):
            yield where, record
            continue
        identity, image = record.get("id"), record.get("image")
        identity = str(identity) if isinstance(identity, int) and not isinstance(identity, bool) else identity
        if not isinstance(identity, str) or not isinstance(image, str) or not image:
            yield where, f"id is {identity!r} and image {image!r}; the rule is an id and a path"
        elif first.setdefault(identity, where) != where:
            yield where, f"id {identity!r} is that of {first[identity]} again; ids name one record each"
        else:
            yield Named(identity, image)


def detect(
    detector: Detector,
    wanted: Iterable[Named | tuple[str, str]],
    pictures: PictureFolder,
    output: Path,
    record: RegionRecord,
    batch: int,
    threads: int,
) -> Detected:
    """Write the regions of the pictures that have none yet in the folder `output`; bad pictures are noted and left out.

    Raises UserError where the folder was made otherwise than `record` says, or another command writes it.
    """
    output.mkdir(parents=True, exist_ok=True)
    with hold(output / ".lock", LOCK_PATIENCE) as mine:
        if not mine:
            raise UserError(
                f"--output {output}: another `m3p prepare regions` is writing it: wait, or take another folder."
            )
        _check_made_alike(output, record)
        for part in output.glob(".*.partial"):  # of a killed command
            part.unlink()
        write_record(output, record)
        done = Detected()
        run = _Run(detector, pictures, output, batch, done)
        run.over(_missing(wanted, output, done), threads)
        done.feature_size = feature_size(output)
        (output / ".lock").unlink(missing_ok=True)
    return done


def settings_of(folder: Path, regions: int, classes: int) -> dict[str, str]:
    """Return what decides the regions of a picture: what the detector's folder holds, and how much of it is kept."""
    parts = [f"{path.name} {path.stat().st_size} {_hash(path)}" for path in sorted(folder.iterdir()) if _decides(path)]
    return {
        "detector": folder.resolve().name,
        "content": hash_bytes("\n".join(parts).encode()),
        "regions": str(regions),
        "classes": str(classes),
    }


def _decides(path: Path) -> bool:
    return path.is_file() and path.suffix in (".json", ".safetensors")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_made_alike(output: Path, record: RegionRecord) -> None:
    """Raise UserError unless `output` is empty or was made by the same detector with the same settings."""
    old = read_record(output)
    if old is None:
        if any(path.suffix == ".npz" for path in output.iterdir()):
            raise UserError(f"--output {output} holds regions that this command did not make: choose another folder.")
    elif old != record:
        was, now = ({"named_by": one.named_by.value, **one.made_from} for one in (old, record))
        names = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
        listed = ", ".join(f"{name} {was.get(name)} there and {now.get(name)} now" for name in names)
        raise UserError(
            f"--output {output} was made otherwise ({listed}): choose another folder, or the same settings."
        )


def _missing(wanted: Iterable[Named | tuple[str, str]], output: Path, done: Detected) -> Iterator[Named]:
    """Yield the pictures that have no regions yet; note in `done` those that have, and those that cannot have any."""
    for one in wanted:
        if not isinstance(one, Named):
            done.bad[one[0]] = [one[1]]
            continue
        try:
            check_name(one.name)
        except ValueError as error:
            done.bad[one.image] = [str(error)]
            continue
        if is_done(output, one.name):
            done.found += 1
        else:
            yield one


class _Run:
    """A detector at work on pictures that threads read ahead."""

    def __init__(self, detector: Detector, pictures: PictureFolder, output: Path, batch: int, done: Detected) -> None:
        self.detector, self.pictures, self.output, self.batch, self.done = detector, pictures, output, batch, done

    def over(self, missing: Iterator[Named], threads: int) -> None:
        """Do all pictures: while a window of them is in the detector, the next one is read."""
        with (
            ThreadPoolExecutor(threads) as pool,
            tqdm(desc="regions", unit=" pictures", leave=False, disable=None) as bar,
        ):
            ahead = self._start(pool, missing)
            while ahead:
                now, ahead = ahead, self._start(pool, missing)
                self._window(now)
                bar.update(len(now))

    def _start(self, pool: ThreadPoolExecutor, missing: Iterator[Named]) -> "list[tuple[Named, Future[Inputs]]]":
        return [(one, pool.submit(self._read, one)) for one in islice(missing, WINDOW * self.batch)]

    def _read(self, one: Named) -> Inputs:
        """Read a picture and prepare it. Raises ValueError or BadSample."""
        _, content = self.pictures.read(one.image)
        return self.detector.prepare(decode(content, FULL_SIZE, LARGEST))

    def _window(self, window: "list[tuple[Named, Future[Inputs]]]") -> None:
        """Find and write the regions of pictures, those of one size together."""
        sizes: dict[tuple[int, ...], list[tuple[Named, Inputs]]] = {}
        for one, future in window:
            try:
                inputs = future.result()
            except (ValueError, BadSample) as error:
                self.done.bad[one.image] = [str(error)]
                continue
            group = sizes.setdefault(tuple(inputs["pixel_values"].shape), [])
            group.append((one, inputs))
            if len(group) == self.batch:
                self._batch(sizes.pop(tuple(inputs["pixel_values"].shape)))
        for group in sizes.values():
            self._batch(group)

    def _batch(self, group: list[tuple[Named, Inputs]]) -> None:
        found = self.detector.find([inputs for _, inputs in group])
        for (one, _), arrays in zip(group, found, strict=True):
            try:
                write_regions(self.output, one.name, check_regions(arrays))
            except ValueError as error:
                self.done.bad[one.image] = [f"its regions cannot be stored: {error}"]
            else:
                self.done.made += 1


def record_of(detector: Path, named_by: NamedBy, regions: int, classes: int) -> RegionRecord:
    """Return the record of a folder that a detector makes."""
    return RegionRecord(named_by=named_by, made_from=settings_of(detector, regions, classes))
