"""Shards for tests of bad data: pairs with pictures and regions, text, and ways to break them."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from m3p.data.loader.picture_buffer import PictureMemory
from m3p.data.mix import Mix
from m3p.data.sample import BadSamples, Sample
from m3p.data.shards.index_file import HEADER, SEAL
from m3p.data.shards.index_folder import index_folder
from m3p.data.source import Source, SourceConfig
from m3p.visual.patches import Patches
from m3p.visual.regions import Regions

WIDTH, CLASSES = 4, 5
REGIONS = Regions(kind="regions", feature_size=WIDTH, classes=CLASSES)
PATCHES = Patches(kind="patches", size=16, patch=8, crop=0.5, flip=True, max_pixels=100_000)

Members = dict[str, bytes]


def picture(kind: str = "JPEG", size: int = 20) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def regions(feature: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    features = np.full((3, WIDTH), feature, np.float16)
    np.savez(buffer, boxes=np.full((3, 4), 0.5, np.float32), features=features, class_ids=np.array([0, 1, 2]))
    return buffer.getvalue()


def pair(number: int = 0) -> Members:
    """A good pair; pictures of all three formats come in turn."""
    name, kind = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))[number % 3]
    record = json.dumps({"id": str(number), "captions": {"en": [f"picture {number}"], "de": [f"Bild {number}"]}})
    return {name: picture(kind), "json": record.encode(), "regions.npz": regions()}


def write(path: Path, samples: list[tuple[str, Members]]) -> None:
    """Write a tar, whatever the names."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def pairs(folder: Path, bad: Members, key: str = "3") -> Path:
    """Write a folder of one shard: six pairs of which number 3 is `bad`."""
    folder.mkdir(exist_ok=True)
    samples = [(str(number), pair(number)) for number in range(6)]
    samples[3] = (key, bad)
    write(folder / "a.tar", samples)
    index_folder(folder, "captions")
    return folder


def as_before(folder: Path) -> None:
    """Make a folder one that an earlier version indexed: fingerprints of 20 bytes, indexes without contents, names and seal."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("checksum", None)
    for shard in manifest["shards"]:
        shard["fingerprint"] = shard["fingerprint"][:40]
        index = folder / shard["name"].replace(".tar", ".idx")
        content = index.read_bytes()
        index.write_bytes(content[: len(content) - (3 * HEADER + 16 * shard["samples"] + SEAL)])
    path.write_text(json.dumps(manifest))


def source(folder: Path, visual: Regions | Patches | None = PATCHES) -> Source:
    config = SourceConfig(path=str(folder))
    return Source(folder, config, (0, "x", 0), 1, visual.load if visual else None)


def read_many(made: Source, number: int, bad: BadSamples, into: Sequence[PictureMemory | None] = ()) -> list[Sample]:
    """Return the first samples of a source, read together."""
    mix = Mix([made], [None], 1)
    samples = mix.read_many(range(number))
    mix.decode(samples, into)
    bad.seen += samples.messages
    return list(samples)
