"""Search in a million pictures: how long an index takes to build and in how much memory, how quick and how right its answers are.

The vectors are drawn, for no data set of a million pictures is at hand: unit vectors whose variance falls as 1/i over the
dimensions, rotated, which is roughly how embeddings of trained encoders spread (a participation ratio near 22 of 256). A
query is a picture's vector with noise of the same length and spread added: a cosine near 0.7 with its picture.

    python benchmarks/search.py [--pictures N] [--width D] [--queries Q] [--folder FOLDER] [--json FILE]

Beside it, flat search by faiss over the same vectors in memory gives the true neighbours. All run on one thread. The index is
built in a process of its own, whose peak of resident memory is stated.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from m3p.runs import Record
from m3p.search.build import build_nearest
from m3p.search.checked import write_checked
from m3p.search.faiss_library import faiss_library
from m3p.search.index import SETTINGS, SearchIndex, Settings
from m3p.search.parts import FOLDER, PART_ROWS, Entry, Floats, read_parts, write_part
from m3p.terminal import say

MOST = 10
NOISE = 1.0
"""Length of a query's noise, its picture's vector having length 1."""


def main() -> None:
    """Draw, build, measure, print, and write the JSON."""
    asked = _arguments()
    faiss_library().omp_set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        folder = Path(temporary)
        _draw(folder, asked.pictures, asked.width)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            building = pool.apply(build, (folder, asked.width))
        index = SearchIndex(folder)
        rows = measure(index, _queries(index, asked.queries))
    found = {"machine": machine(), "pictures": asked.pictures, "width": asked.width, "queries": asked.queries}
    found |= {
        "building": building,
        "rows": rows,
        "ratios": {"time of a query": rows[0]["median_ms"] / rows[1]["median_ms"]},
    }
    _print(found)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where the vectors are put for the time being; 1 GB at full size")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _spread(width: int) -> Floats:
    """Return the matrix [width, width] that gives drawn numbers the spread of embeddings."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
    return (np.arange(1, width + 1)[:, None] ** -0.5 * rotation).astype(np.float32)


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _draw(folder: Path, pictures: int, width: int) -> None:
    """Write the parts of an index of drawn vectors; it is not built yet."""
    (folder / FOLDER).mkdir()
    record = Record(run="drawn", checkpoint="none", step=0, weights="none")
    write_checked(folder / SETTINGS, Settings(run="none", record=record, recipe={}, width=width, origins=[]))
    spread = _spread(width)
    for number, first in enumerate(range(0, pictures, PART_ROWS)):
        rows = min(PART_ROWS, pictures - first)
        numbers = np.random.default_rng((1, number)).standard_normal((rows, width), np.float32)
        names = [f"picture-{first + row:07d}" for row in range(rows)]
        entries = [
            Entry(row, name, 0, f"{name}.jpg", "", f"picture {row:016x}", "", "") for row, name in enumerate(names)
        ]
        write_part(folder, number, entries, _unit(numbers @ spread))


def _queries(index: SearchIndex, count: int) -> Floats:
    """Return [count, width] unit vectors near pictures of the index."""
    draws, width = np.random.default_rng(2), index.settings.width
    chosen = draws.choice(len(index.parts), count)
    pictures = np.stack(
        [index.parts[part].vectors(width)[draws.integers(len(index.parts[part].numbers))] for part in chosen]
    )
    noise = _unit(draws.standard_normal((count, width), np.float32) @ _spread(width))
    return _unit(pictures + NOISE * noise)


def build(folder: Path, width: int) -> dict[str, Any]:
    """Build the index from its parts: -> seconds, and mebibytes of resident memory before and at most."""
    faiss_library().omp_set_num_threads(1)
    before, start = _peak(), time.perf_counter()
    built = build_nearest(folder, width, read_parts(folder), None)
    size = (folder / built.file).stat().st_size if built.file else 0
    return {
        "seconds": time.perf_counter() - start, "peak_mib": _peak(), "peak_before_mib": before, "file_mib": size / 2**20,
        "lists_looked_into": built.probes, "share_found_of_its_own": built.share_found,
    }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(index: SearchIndex, queries: Floats) -> list[dict[str, Any]]:
    """Time one query after another by the index and by flat search; recall is the share of the flat one's best ten."""
    flat = faiss_library().IndexFlatIP(index.settings.width)
    for part in index.parts:
        flat.add(part.vectors(index.settings.width))
    numbers = np.concatenate([part.numbers for part in index.parts])
    index.search(queries, MOST)  # lists and vectors come into memory
    ours, found = _timed(lambda query: np.array([hit.number for hit in index.search(query, MOST)[0]]), queries)
    theirs, true = _timed(lambda query: numbers[flat.search(query, MOST)[1][0]], queries)
    recall = float(np.mean([np.isin(a, b).mean() for a, b in zip(true, found, strict=True)]))
    return [
        {"search": "m3p, " + ("IVF-PQ" if index.built.file else "flat"), **ours, "recall_at_10": recall},
        {"search": "faiss, flat, vectors in memory", **theirs, "recall_at_10": 1.0},
    ]


def _timed(search: Callable[[Floats], Any], queries: Floats) -> tuple[dict[str, float], list[Any]]:
    seconds, found = [], []
    for row in range(len(queries)):
        start = time.perf_counter()
        found.append(search(queries[row : row + 1]))
        seconds.append(time.perf_counter() - start)
    return {"median_ms": 1000 * float(np.median(seconds)), "p95_ms": 1000 * float(np.quantile(seconds, 0.95))}, found


def _print(found: dict[str, Any]) -> None:
    building = found["building"]
    memory = f"{building['peak_mib']:,.0f} MiB at most ({building['peak_before_mib']:,.0f} before)"
    say(found["machine"])
    say(f"{found['pictures']:,} vectors of {found['width']}: built in {building['seconds']:.0f} s, {memory}")
    say(f"{building['file_mib']:,.0f} MiB in memory for search, {building['lists_looked_into']} lists a query")
    for row in found["rows"]:
        times = f"median {row['median_ms']:7.2f} ms, 95 % {row['p95_ms']:7.2f} ms"
        say(f"{row['search']:32} {times}, recall@10 {row['recall_at_10']:.3f}")


if __name__ == "__main__":
    main()
