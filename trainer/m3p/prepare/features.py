"""`m3p prepare features`: what a frozen tower says of the pictures of a source, as shards of their own.

Each shard of the source becomes one of the same name, with the same samples in the same order: a picture is replaced by its
tokens (visual/tower/store.py), captions stay byte for byte. A shard has its name once it is whole, so a command that was killed
goes on with the next one.
"""

import hashlib
import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn
from tqdm import tqdm

from m3p.atomic import replacing, write_text
from m3p.data.loader.die_with_parent import end_with
from m3p.data.records import text_files
from m3p.data.shards.fingerprint import CONTENT, content_number
from m3p.data.shards.index_folder import index_folder
from m3p.data.shards.manifest import Manifest
from m3p.data.shards.tar_samples import TarSample, shown_samples
from m3p.data.storage.folders import LocalFolder
from m3p.errors import BadSample, UserError
from m3p.locks import hold
from m3p.process_pool import no_semaphore, process_pool
from m3p.visual.decode import IMAGE_KINDS, Pixels, picture_kind
from m3p.visual.tower.embedder import GridPooling, GridTower
from m3p.visual.tower.folder import make_tower, tower_facts, tower_hash
from m3p.visual.tower.source import Tower
from m3p.visual.tower.store import MEMBER, Format, StoredTower, pack_tokens

RECORD = "features.json"
"""The file that says how a folder is made."""
MAX_RECORD = 1 << 20
"""Bytes of it."""
PATIENCE = 3.0
"""Seconds for which a command that was killed may still hold the output."""
THREADS = 4
"""That decode pictures, of each process."""
Members = dict[str, bytes]


class FeatureRecord(BaseModel):
    """How a folder of features is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    made_by: StoredTower
    shards: str
    """Hash of the fingerprints of the source's shards, and of the files of captions beside them."""


@dataclass(frozen=True)
class Job:
    """What a process is told."""

    source: Path
    output: Path
    tower: Tower
    made_by: StoredTower
    batch_size: int
    device: str
    """"cpu", or "cuda" for all GPUs in turn."""
    threads: int
    """That torch computes with on a CPU."""


class Made(NamedTuple):
    """What was done."""

    manifest: Manifest
    shards: int
    """Shards that were made now; the others were there."""
    bad: list[str]
    """Of those, pictures that cannot be read, whose samples have captions alone."""


def prepare_features(
    source: Path,
    folder: Path,
    output: Path,
    tokens: int | None,
    format: Format,
    batch_size: int,
    processes: int,
    device: str,
) -> Made:
    """Write the features of the pictures of `source` by the tower in `folder` into `output`.

    Args:
        tokens: that the grid is averaged to; None: all of the grid.
        processes: that work side by side, each on shards of its own.
        device: "cpu" or "cuda".

    Raises UserError: no pictures, no tower, or an output that was made otherwise.
    """
    manifest = _manifest_of(source)
    tower = _tower(folder, tokens)
    made_by = StoredTower(tower=tower_hash(folder), tokens=tower.tokens, width=tower.facts.width, format=format)
    output.mkdir(parents=True, exist_ok=True)
    with hold(output / ".lock", PATIENCE) as mine:
        if not mine:
            raise UserError(
                f"--output {output}: another `m3p prepare features` is writing it: wait, or take another folder."
            )
        _begin(output, FeatureRecord(made_by=made_by, shards=_hash_of(manifest)), manifest)
        missing = [shard.name for shard in manifest.shards if not (output / shard.name).is_file()]
        workers = max(1, min(processes, len(missing)))
        threads = max(1, (os.cpu_count() or 1) // workers)
        job = Job(source, output, tower, made_by, batch_size, device, threads)
        bad = _run(job, missing, workers)
        origin = {**manifest.origin, "features": f"of {source.resolve().name} by {folder.resolve().name}"}
        indexed = index_folder(output, manifest.kind, manifest.language, origin)
        (output / ".lock").unlink(missing_ok=True)
    return Made(indexed, len(missing), bad)


def _tower(folder: Path, tokens: int | None) -> Tower:
    """Return the tower in `folder` as a visual source. Raises UserError."""
    available = tower_facts(folder).tokens
    tokens = tokens or available
    if tokens > available or math.isqrt(tokens) ** 2 != tokens:
        raise UserError(
            f"--tokens {tokens}: the grid of {folder} has {available}; the rule is a square of at most as many: 16, 25, 49"
        )
    return Tower(kind="tower", folder=folder, tokens=tokens)


def _manifest_of(source: Path) -> Manifest:
    """Return the manifest of a source of pictures. Raises UserError where it is none."""
    manifest = LocalFolder(source).manifest
    if manifest.stored_tower is not None:
        raise UserError(f"{source} has {manifest.stored_tower} already; name the source of the pictures.")
    if manifest.without_picture or not manifest.captions:
        raise UserError(f"{source} has samples without pictures; name a source of captioned pictures.")
    return manifest


def _hash_of(manifest: Manifest) -> str:
    parts: list[object] = [(shard.name, shard.samples, shard.fingerprint) for shard in manifest.shards]
    if manifest.side_captions:  # they are written into the output
        parts.append(sorted(manifest.side_captions.items()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _begin(output: Path, record: FeatureRecord, manifest: Manifest) -> None:
    """Note how `output` is made, and remove what a killed command left half done. Raises UserError: it is made otherwise."""
    path, names = output / RECORD, {shard.name for shard in manifest.shards}
    if path.is_file():
        with path.open("rb") as file:
            content = file.read(MAX_RECORD)
        try:
            old = FeatureRecord.model_validate_json(content)
        except ValidationError as error:
            raise UserError(f"{path}: not written by `m3p prepare features` ({error.errors()[0]['msg']}).") from None
        if old != record:
            raise UserError(
                f"--output {output} is made otherwise: {old.made_by}, of shards {old.shards}, and now {record.made_by}, of "
                f"shards {record.shards}. Choose another folder, or the same settings."
            )
    strange = sorted(file.name for file in output.glob("*.tar") if not path.is_file() or file.name not in names)
    if strange:
        raise UserError(
            f"--output {output} holds {strange[0]}, which this command did not make: choose another folder."
        )
    for part in output.glob(".*.partial"):
        part.unlink()
    write_text(path, record.model_dump_json(indent=1) + "\n")


def _run(job: Job, shards: list[str], processes: int) -> list[str]:
    """Make the shards; return which pictures cannot be read."""
    bad: list[str] = []
    with tqdm(total=len(shards), unit="shard", desc="features", leave=False, disable=None) as bar:
        if processes == 1:
            looker = Looker(job, 0)
            for name in shards:
                bad += looker.shard(name)
                bar.update()
            return bad
        context = multiprocessing.get_context("spawn")
        try:
            numbers = context.SimpleQueue()
        except OSError as error:
            raise UserError(no_semaphore(error)) from None
        for number in range(processes):
            numbers.put(number)
        with process_pool(processes, context, _start, (job, numbers, os.getpid())) as pool:
            for done in as_completed([pool.submit(_shard, name) for name in shards]):
                bad += done.result()
                bar.update()
    return sorted(bad)


_looker: "Looker | None" = None
"""Of a process of the pool."""


def _start(job: Job, numbers: "multiprocessing.SimpleQueue[int]", parent: int) -> None:
    global _looker
    end_with(parent)
    torch.set_num_threads(job.threads)
    _looker = Looker(job, numbers.get())


def _shard(name: str) -> list[str]:
    assert _looker is not None, "the pool starts every process with one"
    return _looker.shard(name)


class Looker:
    """A tower at work: makes whole shards.

    Args:
        number: of the process; it chooses a GPU.
    """

    def __init__(self, job: Job, number: int) -> None:
        self._job = job
        cuda = job.device == "cuda"
        self._device = torch.device(f"cuda:{number % torch.cuda.device_count()}" if cuda else "cpu")
        facts = job.tower.facts
        grid = GridTower(make_tower(job.tower.folder, weights=True), facts)
        self._look = nn.Sequential(grid, GridPooling(facts.side, job.tower.tokens)).to(self._device).eval()

    def shard(self, name: str) -> list[str]:
        """Write the shard `name`; return which of its pictures cannot be read, and why. Raises UserError: a broken tar."""
        bad: list[str] = []
        with (
            replacing(self._job.output / name) as aside,
            aside.open("wb") as file,
            ThreadPoolExecutor(THREADS) as pool,
        ):
            tar = webdataset.TarWriter(file, user="m3p", group="m3p", mode=0o644, mtime=0, encoder=False)
            samples = shown_samples(self._job.source / name, _is_used)
            ahead = self._begin(pool, samples)
            while ahead:
                now, ahead = ahead, self._begin(pool, samples)
                for sample in self._finish(now, name, bad):
                    tar.write({"__key__": sample.key, **sample.members})
            tar.close()
        return bad

    def _begin(
        self, pool: ThreadPoolExecutor, samples: Iterator[TarSample]
    ) -> "list[tuple[TarSample, Future[Pixels]]]":
        """Have the pictures of the next batch decoded."""
        return [(one, pool.submit(self._decode, one.members)) for one in islice(samples, self._job.batch_size)]

    def _decode(self, members: Members) -> Pixels:
        """Return a picture as the tower takes it, [size, size, 3]. Raises BadSample."""
        return self._job.tower.load(members, None).features[0]

    def _finish(
        self, batch: "list[tuple[TarSample, Future[Pixels]]]", name: str, bad: list[str]
    ) -> Iterator[TarSample]:
        """Yield the samples of a batch with tokens in the place of pictures; where there are none, with captions alone."""
        seen: dict[str, Pixels] = {}
        for sample, decoded in batch:
            try:
                seen[sample.key] = decoded.result()
            except BadSample as reason:
                bad.append(f"{name}, {sample.key}: {reason}")
        features = self._features(list(seen.values())) if seen else np.zeros((0, 0, 0), np.float32)
        tokens = dict(zip(seen, features, strict=True))
        for sample, _ in batch:
            kept = {
                kind: sample.members[kind] for kind in ("json", *text_files(sample.members)) if kind in sample.members
            }
            if sample.key in tokens:
                kept[MEMBER] = self._pack(tokens[sample.key], sample, name)
            yield TarSample(sample.key, kept)

    def _pack(self, features: NDArray[np.float32], sample: TarSample, name: str) -> bytes:
        """Return the file of a sample's tokens. Raises UserError: they cannot be stored."""
        picture = sample.members[picture_kind(sample.members) or ""]
        number = content_number(hashlib.blake2b(picture, digest_size=CONTENT).digest())
        try:
            return pack_tokens(features, self._job.made_by.format, self._job.made_by.tower, number)
        except ValueError as error:
            raise UserError(f"{self._job.source / name}, {sample.key}: {error}") from None

    def _features(self, pictures: list[Pixels]) -> NDArray[np.float32]:
        """Return the tokens of pictures, [N, k, D]."""
        with torch.inference_mode():
            found: NDArray[np.float32] = self._look(torch.from_numpy(np.stack(pictures)).to(self._device)).cpu().numpy()
        return found


def _is_used(extension: str) -> bool:
    """Tell which files of a sample are looked at: others, such as videos, are not read into memory."""
    return extension == "json" or extension in IMAGE_KINDS or bool(text_files([extension]))
