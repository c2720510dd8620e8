"""Raw files of every importer, changed at random: a mistake that is named comes of it, or shards; no crash and no hang."""

import contextlib
import gzip
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3p.errors import UserError
from m3p.prepare.captions import read_jsonl
from m3p.prepare.dictionary import prepare_dictionary
from m3p.prepare.import_regions import import_regions
from m3p.prepare.pairs import Options, write_pairs
from m3p.prepare.pictures import PictureFolder
from m3p.prepare.published import Published
from m3p.prepare.region_formats.stored import ReadOptions
from m3p.prepare.sets import IMPORTERS
from m3p.prepare.side_files import CaptionTable, SideFile
from m3p.prepare.text import prepare_text
from tests.data.fuzz_files import mutate
from tests.prepare.region_formats import test_bottom_up as bottom_up
from tests.prepare.region_formats import test_m3p_hdf5 as hdf5
from tests.prepare.region_formats import test_mmf as mmf
from tests.prepare.region_formats import test_vinvl as vinvl
from tests.prepare.sets.raw import picture
from tests.prepare.sets.test_parquet import encoded
from tests.prepare.sets.test_wit import row, table

SECONDS = 10
"""For one changed file."""
STRANGE: list[Any] = [
    None, True, -1, 0, 10**400, 1e308, "", "x", "../../x", "/dev/zero", "a\0b", "\ud800", [], {}, [[]], [None], [{}], {"x": [1]},
]  # fmt: skip
"""What JSON can hold in the place of anything."""
Read = Callable[[Path, Path], object]
"""Reads the raw files of a folder and writes into another. Raises UserError."""


def regions(format_name: str, name: str = "") -> Read:
    options = ReadOptions(3, vinvl.NAMES)
    return lambda raw, output: import_regions(raw / name, output, options, format_name, skip_bad=True)


def captions(command: str, *names: str, **options: Any) -> Read:
    def read(raw: Path, output: Path) -> None:
        files: Any = [raw / name for name in names]
        found: Published = IMPORTERS[command](files if command == "wit" else files[0], **options)
        pictures = PictureFolder(raw / "images")
        write_pairs(found.name, found.entries, output, Options(pictures, language=found.language, skip_bad=True))

    return read


def write_bottom_up(raw: Path) -> Read:
    (raw / "a.tsv").write_text("\n".join(bottom_up.row(image_id=number) for number in range(3)))
    return regions("bottom-up", "a.tsv")


def write_vinvl(raw: Path) -> Read:
    vinvl.write(raw, [("k0", vinvl.predicted()), ("k1", vinvl.predicted())], offsets=False)
    return regions("vinvl")


def write_mmf(raw: Path) -> Read:
    for name in ("a", "b"):
        mmf.save(raw, name)
    return regions("mmf")


def write_hdf5(raw: Path) -> Read:
    hdf5.write(raw / "a.h5")
    return regions("m3p-hdf5", "a.h5")


def write_parquet(raw: Path) -> Read:
    images = [{"bytes": encoded(40 * number), "path": f"{number}.png"} for number in range(2)]
    pq.write_table(pa.table({"image": images, "caption": ["a dog", "a cat"]}), raw / "a.parquet")
    return captions("parquet", "a.parquet", language="en")


def write_arrow(raw: Path) -> Read:
    made = pa.table({"image": [encoded(1), encoded(2)], "caption": ["a dog", "a cat"]})
    with pa.OSFile(str(raw / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, made.schema) as out:
        out.write_table(made)
    return captions("parquet", "a.arrow", language="en")


def write_karpathy(raw: Path) -> Read:
    image = {"filepath": "val2014", "filename": "1.png", "split": "train", "imgid": 0, "sentences": [{"raw": "a dog"}]}
    (raw / "a.json").write_text(json.dumps({"images": [image, {**image, "imgid": 1}]}))
    return captions("coco", "a.json", split=["train"])


def write_annotations(raw: Path) -> Read:
    content = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "caption": "犬"}] * 2}
    (raw / "a.json").write_text(json.dumps(content))
    return captions("stair", "a.json")


def write_iglue(raw: Path) -> Read:
    line = {**row("da", "en hund"), "image_idx": 1, "wit_ix": "x"}
    (raw / "a.jsonl").write_text(json.dumps(line) + "\n")
    return captions("wit", "a.jsonl")


def write_wit(raw: Path) -> Read:
    (raw / "a.tsv").write_bytes(gzip.decompress(table(raw / "x.gz", row("da", "x"), row("en", "y")).read_bytes()))
    (raw / "x.gz").unlink()
    return captions("wit", "a.tsv")


def write_xm3600(raw: Path) -> Read:
    line = {"image/key": "1", "image/locale": "fr", "fr": {"caption": ["un chien"]}, "id": {"caption": ["anjing"]}}
    (raw / "a.jsonl").write_text(json.dumps(line) + "\n")
    return captions("xm3600", "a.jsonl")


def write_xflickrco(raw: Path) -> Read:
    (raw / "annotations" / "de").mkdir(parents=True)
    line = {"sentences": ["ein Hund"], "id": "1", "img_path": "1.png"}
    (raw / "annotations" / "de" / "test.jsonl").write_text(json.dumps(line) + "\n")
    return captions("xflickrco", "")


def write_captions(raw: Path) -> Read:
    record = {"id": "a", "image": "1.png", "captions": {"en": ["a dog"], "de": "ein Hund"}, "concept": "dog"}
    (raw / "a.jsonl").write_text((json.dumps(record) + "\n") * 2)

    def read(raw: Path, output: Path) -> None:
        write_pairs(
            "a.jsonl", read_jsonl(raw / "a.jsonl"), output, Options(PictureFolder(raw / "images"), skip_bad=True)
        )

    return read


def write_side_files(raw: Path) -> Read:
    line = {"url": "u", "caption": "ein Hund", "captions": {"fr": ["un chien"]}}
    (raw / "a.jsonl").write_text((json.dumps(line) + "\n") * 2)
    (raw / "b.tsv").write_text("url\tcaption_de\nu\tein Hund\n")

    def read(raw: Path, output: Path) -> None:
        output.mkdir()
        for name in ("a.jsonl", "b.tsv"):
            with CaptionTable(output / "table", "url") as found:
                found.add([SideFile(raw / name, "de")])
                found.captions("u")

    return read


def write_text(raw: Path) -> Read:
    (raw / "en.txt").write_text('One.\n<doc id="1">\n{"text": "Two."}\n')
    (raw / "de.txt.gz").write_bytes(gzip.compress(b"Eins.\nZwei.\n"))
    return prepare_text


def write_lists(raw: Path) -> Read:
    (raw / "en-de.txt").write_text("dog Hund 0.9\ncat Katze 0.5\n")
    (raw / "en-fr.tsv").write_text("dog\tchien\tnoun\n")
    return prepare_dictionary


WRITE = [
    write_bottom_up, write_vinvl, write_mmf, write_hdf5, write_parquet, write_arrow, write_karpathy, write_annotations,
    write_iglue, write_wit, write_xm3600, write_xflickrco, write_captions, write_side_files, write_text, write_lists,
]  # fmt: skip


def change(content: bytes, rng: np.random.Generator) -> bytes:
    """Change bytes; in a line of JSON, or a table of it, more often one of its values."""
    if rng.random() < 0.3:
        return mutate(content, rng)
    lines = content.split(b"\n")
    at = int(rng.integers(len(lines)))
    *before, last = lines[at].split(b"\t")
    try:
        found = json.loads(last)
    except ValueError:
        return mutate(content, rng)
    lines[at] = b"\t".join([*before, json.dumps(_replaced(found, rng)).encode()])
    return b"\n".join(lines)


def _replaced(found: Any, rng: np.random.Generator) -> Any:
    """Return a value of JSON with something strange in the place of a part of it."""
    if isinstance(found, dict | list) and found and rng.random() < 0.85:
        places = list(found) if isinstance(found, dict) else list(range(len(found)))
        place = places[int(rng.integers(len(places)))]
        copy: Any = found.copy()
        copy[place] = _replaced(found[place], rng)
        return copy
    return STRANGE[int(rng.integers(len(STRANGE)))]


def fuzz(write: Callable[[Path], Read], home: Path, number: int, seed: int) -> None:
    """Change one file of the raw ones, `number` times. Raises AssertionError that names the seed."""
    raw, output = home / "raw", home / "out"
    raw.mkdir(parents=True)
    read = write(raw)
    picture(raw / "images" / "1.png", 7)
    files = sorted(path for path in raw.rglob("*") if path.is_file() and path.suffix != ".png")
    for one in range(seed, seed + number):
        rng = np.random.default_rng(one)
        path = files[int(rng.integers(len(files)))]
        whole = path.read_bytes()
        path.write_bytes(change(whole, rng))
        signal.alarm(SECONDS)
        try:
            with contextlib.suppress(UserError):
                read(raw, output)
        except Exception as error:
            raise AssertionError(f"seed {one}: {error!r}") from error
        finally:
            signal.alarm(0)
            shutil.rmtree(output, ignore_errors=True)
            path.write_bytes(whole)


@pytest.fixture
def _in_time() -> Iterator[None]:
    def hangs(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.long
@pytest.mark.usefixtures("_in_time")
@pytest.mark.parametrize("write", WRITE, ids=lambda write: write.__name__.removeprefix("write_"))
def test_a_changed_file_is_read_or_named(tmp_path: Path, write: Callable[[Path], Read]) -> None:
    fuzz(write, tmp_path, 20, 0)
