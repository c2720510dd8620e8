"""Nearest neighbours by faiss: which vectors of an index have the highest cosine with a query.

Up to `MAX_FLAT` pictures every vector is compared (faiss' flat index, exact). Beyond, an inverted file with product
quantisation (IVF-PQ, Jegou et al. 2011) names candidates from a quarter byte a dimension, and these are compared exactly by
the vectors on disk. HNSW is not used: it keeps all vectors in memory and cannot forget one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3p.search.faiss_library import faiss_library
from m3p.search.parts import Floats, Numbers, Part

MAX_FLAT = 50_000
"""Pictures up to which search is flat."""
TRAINING = 40
"""Vectors for each list that k-means is trained on; faiss asks for 39."""
CODES = 256
"""Centroids of a part of a vector: one byte."""
WANTED = 0.98
"""Share of the ten true neighbours that the lists looked into must give, on pictures of the index itself."""
CANDIDATES = 400
"""Pictures that are compared exactly for a query, at least."""
TRIED = 256
"""Pictures that this is measured on."""
NEIGHBOURS = 10


def lists_for(pictures: int) -> int:
    """Return the number of inverted lists for so many pictures: 4 times the square root, with enough to train each."""
    return max(1, min(int(4 * pictures**0.5), pictures // TRAINING))


def padded(vectors: Floats) -> Floats:
    """Return [N, D] with zeros added up to a multiple of 4 dimensions, which changes no inner product."""
    return np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % 4))), np.float32)


def train(parts: Sequence[Part], width: int, seed: int = 0) -> Any:
    """Return an empty IVF-PQ index, trained on a sample of the vectors; at most one part is in memory beside the sample.

    Product quantisation needs `CODES` vectors at least.
    """
    faiss = faiss_library()
    total = sum(len(part.numbers) for part in parts)
    lists = lists_for(total)
    share = min(1.0, max(lists * TRAINING, CODES * TRAINING) / total)
    draw = np.random.default_rng(seed)
    sample = np.concatenate([_some(part.vectors(width), share, draw) for part in parts])
    wide = width + -width % 4
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(wide), wide, lists, wide // 4, 8, faiss.METRIC_INNER_PRODUCT)
    index.train(padded(sample))
    return index


def _some(vectors: Floats, share: float, draw: np.random.Generator) -> Floats:
    return vectors if share == 1 else vectors[draw.random(len(vectors)) < share]


def update(index: Any, parts: Sequence[Part], width: int, built: Numbers) -> None:
    """Let `index`, which holds the pictures `built`, hold those of `parts`: part by part, adding and forgetting."""
    here = np.concatenate([np.zeros(0, np.int64), *(part.numbers for part in parts)])
    gone = np.setdiff1d(built, here)
    if len(gone):
        index.remove_ids(gone)
    for part in parts:
        fresh = ~np.isin(part.numbers, built)
        if fresh.any():
            index.add_with_ids(padded(part.vectors(width)[fresh]), part.numbers[fresh])


def exact(parts: Sequence[Part], width: int, queries: Floats, limit: int) -> tuple[Floats, Numbers]:
    """Return scores and numbers [Q, limit] of the nearest by comparing every vector, part by part."""
    faiss = faiss_library()
    scores, numbers = np.full((len(queries), limit), -np.inf, np.float32), np.full((len(queries), limit), -1, np.int64)
    for part in parts:
        if not len(part.numbers):
            continue
        rows = min(limit, len(part.numbers))
        more, places = faiss.knn(queries, part.vectors(width), rows, metric=faiss.METRIC_INNER_PRODUCT)
        both = np.concatenate([scores, more], 1), np.concatenate([numbers, part.numbers[places]], 1)
        order = np.argsort(-both[0], 1, kind="stable")[:, :limit]
        scores, numbers = (np.take_along_axis(one, order, 1) for one in both)
    return scores, numbers


def candidates(index: Any, queries: Floats, limit: int, probes: int) -> Numbers:
    """Return [Q, C] numbers that an IVF-PQ index names for `queries` [Q, D], -1 where there are fewer.

    `CANDIDATES` or twice `limit`, whichever is more: codes are rough, so the best of these are found by exact comparison.
    `probes` lists are looked into, and more where these hold fewer than `limit` pictures.
    """
    wide, faiss = padded(queries), faiss_library()
    while True:
        parameters = faiss.SearchParametersIVF(nprobe=probes)
        found: Numbers = index.search(wide, max(CANDIDATES, 2 * limit), params=parameters)[1]
        if probes >= index.nlist or ((found >= 0).sum(axis=1) >= limit).all():
            return found
        probes = min(2 * probes, index.nlist)


def numbers_in(index: Any) -> Numbers:
    """Return the numbers of all pictures that an IVF index holds, in no order."""
    faiss, lists = faiss_library(), index.invlists
    sizes = [(number, lists.list_size(number)) for number in range(lists.nlist)]
    found = [faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in sizes if size]
    return np.concatenate([np.zeros(0, np.int64), *found])


def calibrate(index: Any, parts: Sequence[Part], width: int) -> tuple[int, float]:
    """Return how many lists to look into, doubled until `WANTED` of the true neighbours are found; and the share found.

    The queries are `TRIED` pictures of the index, each without itself among its neighbours.
    """
    total = sum(len(part.numbers) for part in parts)
    draw = np.random.default_rng(1)
    some = np.concatenate([_some(part.vectors(width), min(1.0, 2 * TRIED / total), draw) for part in parts])
    queries = np.ascontiguousarray(some[draw.permutation(len(some))[:TRIED]])
    true = exact(parts, width, queries, NEIGHBOURS + 1)[1][:, 1:]
    probes = 1
    while True:
        found = candidates(index, queries, NEIGHBOURS, probes)
        share = float(np.mean([np.isin(a, b).mean() for a, b in zip(true, found, strict=True)]))
        if share >= WANTED or probes >= index.nlist:
            return probes, share
        probes = min(2 * probes, index.nlist)


def write_index(index: Any, path: Path) -> None:
    """Write a faiss index to a file."""
    faiss_library().write_index(index, str(path))


def read_index(path: Path) -> Any:
    """Read a faiss index, whose checksum has been compared: faiss itself trusts what it reads."""
    return faiss_library().read_index(str(path))
