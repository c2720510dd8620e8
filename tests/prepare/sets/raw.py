"""What the tests of importers share: pictures, region features, a call of the command, and what it stored."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from m3p.cli.main import app
from m3p.data.shards.index_file import open_index
from m3p.data.shards.manifest import Manifest
from m3p.data.shards.sample_members import members
from m3p.errors import UserError

Record = dict[str, Any]


def picture(path: Path, shade: int) -> None:
    """Write a small picture; another `shade`, another picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(path)


def region_features(path: Path, value: float = 1.0) -> None:
    """Write the region features of a picture, ID.npz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boxes, features = np.full((2, 4), 0.5, np.float32), np.full((2, 4), value, np.float16)
    np.savez(path, boxes=boxes, features=features, class_ids=np.array([0, 1]))


def run(command: str, *words: object, output: Path) -> str:
    """Call `m3p prepare COMMAND WORDS --output OUTPUT` and return what it said. Raises UserError as the command does."""
    arguments = ["prepare", command, *map(str, words), "--output", str(output)]
    made = CliRunner().invoke(app, arguments)
    if isinstance(made.exception, UserError):
        raise made.exception
    assert made.exit_code == 0, made.output
    return made.output


def stored(folder: Path) -> dict[str, Record]:
    """Return the JSON of all samples of a source by their ids, with the names of their other files under `files`."""
    found = {}
    for shard in Manifest.load(folder).shards:
        index = open_index(folder / shard.index_name, shard.samples)
        content = (folder / shard.name).read_bytes()
        for sample in range(shard.samples):
            files = members(content[index.offsets[sample] : index.offsets[sample + 1]])
            record = json.loads(files.pop("json"))
            found[record["id"]] = {**record, "files": sorted(files)}
    return found


def origin(folder: Path) -> dict[str, str]:
    """Return what a manifest says of where its samples come from."""
    return Manifest.load(folder).origin
