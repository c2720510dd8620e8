"""One loader of `loader.py`, in a process and an environment of its own: prints what it measured as one line of JSON.

Every loader does the same work with the same functions (`Task`): JPEG decoding by simplejpeg, tokens by the one
Tokenizer, a whole batch in a call, batches of 64 as torch tensors. Each peer is set up as its own documentation advises for
speed.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch

from m3p.data.tokenizer import Tokenizer

BATCH = 64
MAX_TOKENS = 128
RESUME_AT = 1_000_000
WARM_UP = 256
"""Batches that are not counted: more than any loader has ready when the first one is asked for, and enough for the tokenizer,
which all share, to have met most words. Of a slow loader those of so many seconds are enough:"""
WARM_UP_SECONDS = 5
SECONDS = 2.5
"""That a measurement takes."""
FROM_DISK = 80
"""Batches of a measurement from disk: they are read once."""
READ_AHEAD = 20_000
"""Samples that a loader without a state skips; what the whole way would take follows from them."""

Work = dict[str, Any]
Start = Callable[["Task", int], Iterator[Any]]


class Task:
    """What is loaded: pictures with captions, or text."""

    def __init__(self, kind: str, data: Path, workers: int, threads: int) -> None:
        self.kind, self.data, self.workers, self.threads = kind, data, workers, threads
        self.folder = data / kind
        self.tokenizer = Tokenizer(data / "tokenizer")

    @property
    def tars(self) -> list[str]:
        """The shards, in order of name."""
        return sorted(str(path) for path in self.folder.glob("*.tar"))

    def sample(self, members: Work) -> Work:
        """Decode one sample: {"jpg", "json"} or {"txt"} bytes -> {"pixels"?, "text"}."""
        if self.kind == "text":
            return {"text": str(members["txt"], "utf-8")}
        caption = json.loads(bytes(members["json"]))["captions"]["en"][0]
        return {"pixels": simplejpeg.decode_jpeg(members["jpg"]), "text": caption}

    def collate(self, samples: Sequence[Work]) -> dict[str, torch.Tensor]:
        """Lay the samples of a batch together: texts tokenised in one call, as ours are, ids end to end, without padding."""
        tokens, lengths = self.tokenizer.encode_flat([sample["text"] for sample in samples], MAX_TOKENS)
        batch = {"tokens": torch.from_numpy(tokens), "lengths": torch.from_numpy(lengths)}
        if "pixels" in samples[0]:
            batch["pixels"] = torch.from_numpy(np.stack([sample["pixels"] for sample in samples]))
        return batch


def ours(task: Task, first: int, masks: bool = False) -> Iterator[Any]:
    """Our loader; without `masks` an objective that only packs, as the peers do, with them the real one."""
    from loader_ours import start

    return start(task.kind, task.data, task.workers, task.threads, first // BATCH, masks)


def webdataset(task: Task, first: int) -> Iterator[Any]:
    """Sequential reads and a shuffle buffer; batches are made in the workers (its FAQ). It has no state to resume from."""
    import webdataset as wds

    pipeline = wds.WebDataset(task.tars, shardshuffle=100, empty_check=False, seed=0).repeat().shuffle(1000)
    if first:
        pipeline = pipeline.compose(partial(_skip, number=first))
    pipeline = pipeline.map(task.sample).batched(BATCH, collation_fn=task.collate)
    more = {"prefetch_factor": 4} if task.workers else {}
    return iter(wds.WebLoader(pipeline, batch_size=None, num_workers=task.workers, **more))


def _skip(samples: Iterator[Work], number: int) -> Iterator[Work]:
    return itertools.islice(samples, number, None)


class _Random:
    """Samples by number, for grain: our own index and reader, since it reads no tars."""

    def __init__(self, task: Task) -> None:
        from m3p.data.storage.folders import LocalFolder
        from m3p.data.storage.reader import ShardReader

        folder = LocalFolder(task.folder)
        self._ends = np.cumsum([shard.samples for shard in folder.manifest.shards])
        self._reader = ShardReader(folder)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> Work:
        shard = int(self._ends.searchsorted(number, "right"))
        return self._reader.read(shard, number - (int(self._ends[shard - 1]) if shard else 0))


def grain(task: Task, first: int) -> Iterator[Any]:
    """MapDataset with its global shuffle, reader threads (`loader.py` tries how many), and worker processes by mp_prefetch."""
    import grain
    from absl import flags

    flags.FLAGS(sys.argv[:1])  # its processes ask for flags that are parsed, where jax is installed
    samples = grain.MapDataset.source(_Random(task)).seed(0).shuffle().repeat().map(task.sample)
    batches = samples.batch(BATCH, batch_fn=task.collate)
    options = grain.ReadOptions(num_threads=task.threads, prefetch_buffer_size=max(16, 2 * task.threads))
    if not task.workers:
        loader = iter(batches.to_iter_dataset(options))
        loader.set_state({"next_index": first // BATCH})
        return loader
    whole = batches[first // BATCH :] if first else batches
    processes = grain.multiprocessing.MultiprocessingOptions(num_workers=task.workers, per_worker_buffer_size=4)
    return iter(whole.to_iter_dataset(options).mp_prefetch(processes))


def energon(task: Task, first: int) -> Iterator[Any]:
    """A crude dataset, cooked by our functions, with its shuffle buffer; savable, so that it can be resumed."""
    import megatron.energon as en

    folder = _prepared_for_energon(task)

    @en.stateless  # type: ignore[untyped-decorator]
    def cook(crude: dict[str, Any]) -> Any:
        return en.TextSample(**en.basic_sample_keys(crude), text=task.sample(crude))

    class Encoder(en.DefaultTaskEncoder):  # type: ignore[misc]
        decoder = None
        cookers = (en.Cooker(cook),)

        def batch(self, samples: list[Any]) -> Any:
            return task.collate([sample.text for sample in samples])

        def encode_batch(self, batch: Any) -> Any:
            return batch

    def make() -> Any:
        config = en.WorkerConfig(rank=0, world_size=1, num_workers=task.workers)
        dataset = en.get_train_dataset(
            folder,
            worker_config=config,
            batch_size=BATCH,
            shuffle_buffer_size=1000,
            max_samples_per_sequence=100,
            task_encoder=Encoder(),
        )
        return en.get_savable_loader(dataset, **({"prefetch_factor": 4} if task.workers else {}))

    loader = make()
    if first:  # its state cannot be made up: run a little, save, and go on from there in a new loader
        list(itertools.islice(loader, 20))
        state = loader.save_state_rank()
        _Clock.start()
        loader = make()
        loader.restore_state_rank(state)
    return iter(loader)


def _prepared_for_energon(task: Task) -> str:
    folder = task.data / f"energon-{task.kind}"
    if not (folder / ".nv-meta" / "split.yaml").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for tar in task.tars:
            os.link(tar, folder / Path(tar).name)
        program = str(Path(sys.executable).with_name("energon"))
        options = [
            "--non-interactive",
            "--split-ratio",
            "1,0,0",
            "--sample-type",
            "CrudeWebdataset",
            "--num-workers",
            "1",
        ]
        subprocess.run([program, "prepare", str(folder), *options], check=True, stdout=subprocess.DEVNULL)
    return str(folder)


def litdata(task: Task, first: int) -> Iterator[Any]:
    """Its own chunks, as its `optimize` writes them, holding the members as bytes."""
    import litdata

    folder = task.data / f"litdata-{task.kind}"
    if not (folder / "index.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        source = _Random(task)
        litdata.optimize(
            source.__getitem__, list(range(len(source))), str(folder), chunk_bytes="64MB", num_workers=1, verbose=False
        )
    samples = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=False, transform=task.sample)
    more: dict[str, Any] = {"prefetch_factor": 4} if task.workers else {}
    loader = litdata.StreamingDataLoader(
        samples, batch_size=BATCH, num_workers=task.workers, collate_fn=task.collate, **more
    )
    if first:
        list(itertools.islice(loader, 20))
        state = loader.state_dict()
        _Clock.start()
        samples = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=False, transform=task.sample)
        loader = litdata.StreamingDataLoader(
            samples, batch_size=BATCH, num_workers=task.workers, collate_fn=task.collate, **more
        )
        loader.load_state_dict(state)
    return itertools.chain.from_iterable(itertools.repeat(loader))


class _Clock:
    """When the measured part began; a loader whose state must be made first starts it again."""

    began = 0.0

    @classmethod
    def start(cls) -> None:
        cls.began = time.perf_counter()


LOADERS: dict[str, Start] = {
    "ours": ours,
    "ours, masked": partial(ours, masks=True),
    "webdataset": webdataset,
    "grain": grain,
    "energon": energon,
    "litdata": litdata,
}


def main() -> None:
    """Load for some seconds and print samples a second; or, with --resume, the time to the first batch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("loader", choices=LOADERS)
    parser.add_argument("kind", choices=["pictures", "text"])
    parser.add_argument("workers", type=int)
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", type=int, default=2, help="of a loader that has some: of each worker")
    parser.add_argument(
        "--from-disk", action="store_true", help="take the data out of memory before; count from batch 1"
    )
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, start = Task(options.kind, options.data, options.workers, options.threads), LOADERS[options.loader]
    if options.resume:
        skipped = READ_AHEAD if options.loader == "webdataset" else RESUME_AT
        _Clock.start()
        next(start(task, skipped))
        seconds = time.perf_counter() - _Clock.began
        print(json.dumps({"seconds": seconds * RESUME_AT / skipped}))
    elif options.from_disk:
        take_out_of_memory(options.data)
        print(json.dumps(rate(itertools.islice(start(task, 0), 1 + FROM_DISK), 1, math.inf)))
    else:
        print(json.dumps(rate(start(task, 0), WARM_UP, SECONDS)))
    sys.stdout.flush()
    os._exit(0)  # some loaders take seconds to let their workers go


def take_out_of_memory(folder: Path) -> None:
    """Have the system forget what it holds of the files in `folder`, as of data larger than its memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # what is not yet written cannot be forgotten
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(batches: Iterator[Any], before: int, seconds: float) -> dict[str, float]:
    """Load for so many seconds, or until there are no more batches; the first, up to `before`, are not counted.

    -> "rate": samples a second; "cpu": samples a second of processor time, workers included, which other programs on the
    machine disturb less.
    """
    next(batches)
    began = time.perf_counter()
    for _ in itertools.islice(batches, before - 1):
        if time.perf_counter() - began >= WARM_UP_SECONDS:
            break
    began, used, samples = time.perf_counter(), processor_seconds(), 0
    for _ in batches:
        samples += BATCH
        if time.perf_counter() - began >= seconds:
            break
    return {"rate": samples / (time.perf_counter() - began), "cpu": samples / (processor_seconds() - used)}


def processor_seconds() -> float:
    """Return the processor time of this process and all that it started and that still live."""
    parents, ticks = {}, {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            pid = int(entry.parent.name)
            parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))  # with the children that have ended
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine and pid not in mine}:
        mine |= more
    return sum(ticks[pid] for pid in mine) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
