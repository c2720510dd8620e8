"""Pictures of raw records through a frozen vision tower: ID.npz with regions, for `m3p prepare captions --regions`.

    python benchmarks/tower_regions.py FOLDER --tower FOLDER --output FOLDER [--side 1]

FOLDER holds train.jsonl and dev.jsonl ({"id", "image"}). A feature is the mean of the tower's cells in a square of the picture,
standardised; `--side 1` is one of the whole picture. Pictures whose file is there are passed over.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from m3p.visual.decode import decode
from m3p.visual.tower.embedder import GridTower
from m3p.visual.tower.folder import make_tower, tower_facts

BATCH = 32
Floats = NDArray[np.float32]


def grids(tower: Path, pictures: Sequence[Path]) -> Iterator[Floats]:
    """Yield the tower's grid of each picture, row by row: float32 [side^2, width]. Raises UserError, BadSample."""
    facts = tower_facts(tower)
    model = GridTower(make_tower(tower, weights=True), facts)
    size = facts.preparation.size
    for first in tqdm(range(0, len(pictures), BATCH), desc="tower", unit="batch", disable=None):
        paths = pictures[first : first + BATCH]
        pixels = [facts.preparation.resize(decode(path.read_bytes(), size)) for path in paths]
        with torch.inference_mode():
            found = model(torch.from_numpy(np.stack(pixels)))
        yield from found.float().numpy()


def regions_of(grid: Floats, side: int) -> tuple[Floats, Floats]:
    """Return boxes [side^2, 4] and standardised features [side^2, width] of a grid [T, width] averaged to `side` cells a side."""
    whole = round(len(grid) ** 0.5)
    cells = torch.from_numpy(grid).T.reshape(1, -1, whole, whole)
    pooled = F.adaptive_avg_pool2d(cells, side)[0].flatten(1).T
    edges = np.linspace(0, 1, side + 1, dtype=np.float32)
    boxes = [[edges[x], edges[y], edges[x + 1], edges[y + 1]] for y in range(side) for x in range(side)]
    return np.array(boxes, np.float32), F.layer_norm(pooled, pooled.shape[-1:]).numpy()


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of train.jsonl and dev.jsonl."""
    texts = [(folder / f"{split}.jsonl").read_text(encoding="utf-8") for split in ("train", "dev")]
    return [json.loads(line) for text in texts for line in text.splitlines() if line.strip()]


def write_regions(data: Path, tower: Path, output: Path, side: int) -> int:
    """Write ID.npz of every record that has none yet; return how many were written."""
    output.mkdir(parents=True, exist_ok=True)
    missing = [record for record in read_records(data) if not (output / f"{record['id']}.npz").is_file()]
    found = grids(tower, [data / record["image"] for record in missing])
    for record, grid in zip(missing, found, strict=True):
        boxes, features = regions_of(grid, side)
        partial = output / f"{record['id']}.partial.npz"
        np.savez(partial, allow_pickle=False, boxes=boxes, features=features.astype(np.float16))
        partial.replace(output / f"{record['id']}.npz")
    return len(missing)


def main() -> None:
    """Read the options, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="holds train.jsonl, dev.jsonl and the pictures")
    parser.add_argument("--tower", type=Path, required=True, help="a transformers folder of a vision model")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--side", type=int, default=1, help="regions of a side of the picture")
    options = parser.parse_args()
    written = write_regions(options.data, options.tower, options.output, options.side)
    print(f"{options.output}: {written:,} pictures")


if __name__ == "__main__":
    main()
