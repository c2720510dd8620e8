"""Where the texts of a language lie on average, measured on captions other than the queries.

A multilingual encoder puts the texts of one language a little aside from those of another. Cosines against pictures, which
training placed where the captioned language lies, are then too low for whole languages, and their order suffers. Moving
each query by the mean of its language mends that (closed-form ridge, which centres queries, does the same). No picture and no
right answer is looked at. The languages of the queries must be known.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from m3p.errors import UserError
from m3p.retrieval.pictures import open_captions
from m3p.retrieval.scoring import Floats, Scorer

TEXTS = 128
"""Different captions of a language that are embedded, at most."""
LEAST = 16
"""Fewer say too little of a language."""
SAMPLES = 8192
"""Samples that are read for them, at most."""


def language_centres(name: str, path: str, languages: Sequence[str], scorer: Scorer) -> dict[str, Floats]:
    """Return for each language the mean embedding of captions in the shards `path`: [D].

    `name` is the evaluation that asks, for messages. Raises UserError where a language has fewer than `LEAST` captions there.
    """
    texts = _captions(name, path, languages)
    for language, found in texts.items():
        if len(found) < LEAST:
            raise UserError(
                f"evaluation.{name}.centre = {path}: {len(found)} different captions in {language}, and {LEAST} are needed to "
                "say where a language lies; name a folder with more, leave the language out, or leave out `centre`"
            )
    means = (scorer.embed_texts(found).mean(axis=0, dtype=np.float64) for found in texts.values())
    return dict(zip(texts, (mean.astype(np.float32) for mean in means), strict=True))


def move(embedded: Floats, centre: Floats) -> Floats:
    """Return embeddings [C, D] with the centre [D] taken away, of unit length again."""
    moved = embedded - centre
    unit: Floats = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-6)
    return unit


def _captions(name: str, path: str, languages: Sequence[str]) -> dict[str, list[str]]:
    """Return up to `TEXTS` different captions of each language, from the first samples of the source's order."""
    source = open_captions(name, path)
    found: dict[str, dict[str, None]] = {language: {} for language in languages}
    count = min(source.manifest.samples, SAMPLES)
    for sample in source.read_many(np.arange(count)):
        for language in found.keys() & sample.captions.keys():
            found[language].update(dict.fromkeys(sample.captions[language]))
        if all(len(texts) >= TEXTS for texts in found.values()):
            break
    return {language: list(islice(texts, TEXTS)) for language, texts in found.items()}
