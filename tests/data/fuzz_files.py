"""Index files, manifests, answers of servers and state.json changed at random, and read.

Either an error that the user can mend comes of it, or the very samples that were there before: no crash, no hang, and no
silent change. Run by `python -m tests.data.fuzz`, which see.
"""

import contextlib
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import fsspec
import numpy as np

from m3p.checkpoints.files import FORMAT_VERSION, STATE_FILE, State, read_state, write_state
from m3p.data.sample import BadSamples
from m3p.data.shards.index_folder import index_folder
from m3p.data.source import Source, SourceConfig
from m3p.data.storage import remote
from m3p.data.storage.cache import Cache
from m3p.data.storage.folders import open_folder
from m3p.errors import UserError
from tests.data.broken import PATCHES, pair, write

SECONDS = 10
"""For one mutated file."""
PAIRS, TEXTS = "pairs", "texts"
Content = list[str]
"""The record of each sample, as text: captions, concept and id of a pair, or the passage."""


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Change bits, bytes and digits of a small file, cut it, or put something in."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        at, length = int(rng.integers(max(len(changed), 1))), int(rng.integers(1, 40))
        way = int(rng.integers(7))
        if way in (0, 1) and changed:
            changed[at] ^= 1 << int(rng.integers(8))
        elif way == 2:
            changed[at : at + length] = rng.bytes(len(changed[at : at + length]))
        elif way == 3 and changed:  # another digit where one is: a file that can be read, and says something else
            digits = [place for place, byte in enumerate(changed) if 48 <= byte < 58] or [at]
            changed[digits[int(rng.integers(len(digits)))]] = 48 + int(rng.integers(10))
        elif way == 4:
            del changed[at:]
        elif way == 5:
            changed[at:at] = rng.bytes(length)
        else:
            del changed[at : at + length]
    return bytes(changed)


class Folders:
    """A folder of pairs and one of texts, two shards each, and what they hold."""

    def __init__(self, home: Path) -> None:
        self.home = home
        samples = {
            PAIRS: [pair(number) for number in range(6)],
            TEXTS: [{"txt": f"passage {number} ".encode() * 20} for number in range(6)],
        }
        for name, members in samples.items():
            (home / name).mkdir(parents=True)
            for shard in range(2):
                part = [(f"{number:02d}", one) for number, one in enumerate(members[3 * shard :][:3])]
                write(home / name / f"{shard}.tar", part)
            if name == PAIRS:
                index_folder(home / name, "captions")
            else:
                index_folder(home / name, "text", "en")
        self.whole = {name: self.read(name, str(home / name), None) for name in samples}

    def read(self, name: str, path: str, cache: Cache | None) -> Content:
        """Read a folder, one by one and together. Raises UserError."""
        load = PATCHES.load if name == PAIRS else None
        made = Source(open_folder(path, cache, "path"), SourceConfig(path=path), (0, "x", 0), 2, load)
        count = made.manifest.samples
        bad = BadSamples([])
        found = [made.read(index, bad) for index in range(count)]
        together = made.read_many(np.arange(count))
        assert together.records == [sample.record for sample in found]
        assert not bad.seen, "what is there is good"
        return [str(sample.record) for sample in found]

    def check(self, name: str, path: str, cache: Cache | None = None) -> None:
        """Read a folder in which something was changed; what comes is what was there, or an error of the user's."""
        with contextlib.suppress(UserError):
            found = self.read(name, path, cache)
            assert found == self.whole[name], "other samples came, without a word"


def fuzz_local(home: Path, number: int, seed: int, ending: str) -> int:
    """Change index files (`ending` .idx) or manifests (.json) of local folders."""
    folders = Folders(home)

    def one(rng: np.random.Generator) -> None:
        for name in (PAIRS, TEXTS):
            files = sorted((home / name).glob(f"*{ending}"))
            path = files[int(rng.integers(len(files)))]
            whole = path.read_bytes()
            path.write_bytes(mutate(whole, rng))
            try:
                folders.check(name, str(home / name))
            finally:
                path.write_bytes(whole)

    return _repeat(one, number, seed)


def fuzz_remote(home: Path, number: int, seed: int) -> int:
    """Change one answer of a server: manifest, index or shard; and look what is there once it is mended."""
    folders, memory = Folders(home / "local"), fsspec.filesystem("memory")
    files = {
        name: {path.name: path.read_bytes() for path in (home / "local" / name).iterdir()} for name in (PAIRS, TEXTS)
    }

    def one(rng: np.random.Generator) -> None:
        for name, stored in files.items():
            # One of its own each time: what is fetched ahead may still be on its way.
            cache = Cache(Path(tempfile.mkdtemp(dir=home)), 10**6)
            # The place too: all readers of a file of memory:// have one position in it, and would cut each other's copies.
            place = f"/{cache.folder.parent.name}/{name}"
            for file, content in stored.items():
                memory.pipe(f"{place}/{file}", content)
            file = sorted(stored)[int(rng.integers(len(stored)))]
            memory.pipe(f"{place}/{file}", mutate(stored[file], rng))
            folders.check(name, f"memory:/{place}", cache)
            memory.pipe(f"{place}/{file}", stored[file])
            assert folders.read(name, f"memory:/{place}", cache) == folders.whole[name], "the damage has stayed"
            shutil.rmtree(cache.folder, ignore_errors=True)
            memory.rm(place, recursive=True)

    with _no_pauses():
        return _repeat(one, number, seed)


def fuzz_state(home: Path, number: int, seed: int) -> int:
    """Change state.json of a checkpoint."""
    home.mkdir()
    data = {"objectives.x.sources.0": "0123456789abcdef"}
    write_state(
        home,
        State(
            format_version=FORMAT_VERSION,
            step=17,
            updates=16,
            ranks=2,
            order_version=3,
            recipe={"run": {"steps": 99}},
            data=data,
        ),
    )
    whole, wanted = (home / STATE_FILE).read_bytes(), read_state(home)

    def one(rng: np.random.Generator) -> None:
        (home / STATE_FILE).write_bytes(mutate(whole, rng))
        with contextlib.suppress(UserError):
            assert read_state(home) == wanted, "another state came, without a word"

    return _repeat(one, number, seed)


KINDS: dict[str, Callable[[Path, int, int], int]] = {
    "index files": lambda home, number, seed: fuzz_local(home, number, seed, ".idx"),
    "manifests": lambda home, number, seed: fuzz_local(home, number, seed, ".json"),
    "answers of servers": fuzz_remote,
    "state.json": fuzz_state,
}


def _repeat(one: Callable[[np.random.Generator], None], number: int, seed: int) -> int:
    """Call `one` with the seeds `seed`, `seed` + 1, ...; return how many. Raises AssertionError that names the seed."""
    signal.signal(signal.SIGALRM, _hangs)
    for current in range(seed, seed + number):
        signal.alarm(SECONDS)
        try:
            one(np.random.default_rng(current))
        except Exception as error:
            raise AssertionError(f"seed {current}: {traceback.format_exc()}") from error
        finally:
            signal.alarm(0)
    return number


@contextlib.contextmanager
def _no_pauses() -> Iterator[None]:
    """Let nothing pass between two attempts to read a file."""
    before, remote.FIRST_PAUSE = remote.FIRST_PAUSE, 0.0
    try:
        yield
    finally:
        remote.FIRST_PAUSE = before


def _hangs(signal: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"no end after {SECONDS} seconds")
