"""Shards changed at random, indexed and read: only UserError and BadSample may come of it, within seconds.

Passages are read together and one by one, which must agree. Run as a program, it does the same to index files, manifests,
answers of servers and state.json (fuzz_files.py), of which no silent change may come.

    python -m tests.data.fuzz 10000 [SEED]

Prints the seed of what failed; `python -m tests.data.fuzz 1 SEED` does that one again.
"""

import contextlib
import io
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from types import FrameType

import numpy as np

from m3p.data.sample import BadSamples
from m3p.data.shards.index_folder import index_folder
from m3p.data.shards.manifest import Kind
from m3p.data.source import Source
from m3p.errors import UserError
from tests.data.broken import PATCHES, REGIONS, Members, pair, read_many, source, write
from tests.data.fuzz_files import KINDS

LANGUAGE: dict[Kind, str | None] = {"captions": None, "text": "en"}
SECONDS = 10
"""For one shard; it has six samples."""


def fuzz(folder: Path, number: int, seed: int) -> int:
    """Try `number` shards, seeds `seed`, `seed` + 1, ...; return how many. Raises AssertionError that names the seed."""
    folder.mkdir(exist_ok=True)
    kinds: dict[Kind, list[Members]] = {
        "captions": [pair(number) for number in range(6)],
        "text": [{"txt": f"passage {number} ".encode() * 50} for number in range(6)],
    }
    good = {kind: _make(folder / kind, kind, samples) for kind, samples in kinds.items()}
    signal.signal(signal.SIGALRM, _hangs)
    for one in range(seed, seed + number):
        rng = np.random.default_rng(one)
        signal.alarm(SECONDS)
        try:
            for kind, files in good.items():
                _read_with_old_index(folder / kind, mutate(files["a.tar"], rng, keep_size=True), files)
                _index_and_read(folder / kind, mutate(files["a.tar"], rng, keep_size=False), kind)
        except Exception as error:
            raise AssertionError(f"seed {one}: {traceback.format_exc()}") from error
        finally:
            signal.alarm(0)
    return number


def mutate(content: bytes, rng: np.random.Generator, keep_size: bool) -> bytes:
    """Change bytes, bits and blocks of `content`; unless `keep_size`, also cut it or put something in."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 12))):
        at, length = int(rng.integers(len(changed))), int(rng.integers(1, 600))
        way = int(rng.integers(4 if keep_size else 7))
        if way == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif way == 1:
            changed[at : at + length] = rng.bytes(len(changed[at : at + length]))
        elif way == 2:
            changed[at : at + length] = bytes(len(changed[at : at + length]))
        elif way == 3:  # another block in place of this one: headers where data should be
            here, there = at // 512 * 512, int(rng.integers(max(len(changed) // 512, 1))) * 512
            changed[here : here + 512] = changed[there : there + 512]
        elif way == 4:
            del changed[at:]
        elif way == 5:
            changed[at:at] = rng.bytes(length)
        else:
            del changed[at : at + length]
        if not changed:
            return b""
    return bytes(changed)


def _make(folder: Path, kind: Kind, samples: list[Members]) -> dict[str, bytes]:
    """Write a folder of one shard; return its files."""
    folder.mkdir()
    write(folder / "a.tar", [(f"{number:02d}", sample) for number, sample in enumerate(samples)])
    index_folder(folder, kind, LANGUAGE[kind])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _read_with_old_index(folder: Path, content: bytes, good: dict[str, bytes]) -> None:
    """The shard was damaged after it was indexed."""
    for name, stored in good.items():
        (folder / name).write_bytes(stored)
    (folder / "a.tar").write_bytes(content)
    _read(folder)


def _index_and_read(folder: Path, content: bytes, kind: Kind) -> None:
    """The shard came damaged."""
    (folder / "a.tar").write_bytes(content)
    with contextlib.suppress(UserError):
        index_folder(folder, kind, LANGUAGE[kind])
        _read(folder)


def _read(folder: Path) -> None:
    if folder.name == "text":
        with contextlib.suppress(UserError):
            _read_texts(source(folder, None))
        return
    for visual in (PATCHES, REGIONS):
        with contextlib.suppress(UserError):
            made = source(folder, visual)
            read_many(made, 2 * made.manifest.samples, BadSamples([]))


def _read_texts(made: Source) -> None:
    indices, bad = np.arange(2 * made.manifest.samples), BadSamples([])
    alone = [made.read(index, bad) for index in indices.tolist()]
    together = made.read_many(indices)
    assert together.records == [sample.text for sample in alone]
    assert [tuple(owner) for owner in together.owners.tolist()] == [sample.owner for sample in alone]
    assert together.messages == bad.seen


def _hangs(signal: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"no end after {SECONDS} seconds")


if __name__ == "__main__":
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        print(f"seeds {first} to {first + count - 1}")
        for kind, change in {"shards": fuzz, **KINDS}.items():
            (Path(home) / kind).mkdir()
            with contextlib.redirect_stdout(io.StringIO()):  # what indexing says of each
                done = change(Path(home) / kind / "here", count, first)
            silent = "" if change is fuzz else ", no silent change"
            print(f"{kind}: {done} mutations: no crash, no hang{silent}", flush=True)
