"""Mixed-length samples for the speed benchmarks: text of 8-128 tokens, captions of 5-40 tokens with 36-100 regions.

Lengths are uniform over these ranges, tokens and features are random: speed does not depend on what they say.
"""

import numpy as np

from m3p.batch import Batch, Sequence
from m3p.objectives.tasks.masked_regions import ask_regions
from m3p.objectives.tasks.masked_words import ask_words
from m3p.objectives.tasks.matching import ask_match
from m3p.packing import Packer
from m3p.visual.regions import RegionTokens

TEXT, CAPTION, REGIONS = (8, 128), (5, 40), (36, 100)
MASKED = 0.15


def text_batch(rng: np.random.Generator, samples: int, words: int, feature_size: int) -> Batch:
    """Passages with masked words; `words` is the vocabulary."""
    packer = Packer(feature_size)
    for length in rng.integers(TEXT[0], TEXT[1], samples, endpoint=True):
        tokens = _tokens(rng, length, words)
        _, first = packer.add(Sequence(tokens))
        places = _places(rng, length - 2) + 1
        ask_words(packer, first + places, tokens[places])
    return packer.finish(samples)


def caption_batch(rng: np.random.Generator, samples: int, words: int, feature_size: int, classes: int) -> Batch:
    """Pairs with masked words or masked regions in turn, each asked whether it matches."""
    packer = Packer(feature_size)
    for number in range(samples):
        tokens = _tokens(rng, rng.integers(CAPTION[0], CAPTION[1], endpoint=True), words)
        count = int(rng.integers(REGIONS[0], REGIONS[1], endpoint=True))
        corner = rng.random((count, 2), np.float32) / 2
        features = rng.standard_normal((count, feature_size), np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        visual = RegionTokens(features, np.concatenate([corner, corner + 0.4], 1), rng.integers(classes, size=count))
        sequence, first = packer.add(Sequence(tokens, visual))
        if number % 2:
            places = _places(rng, len(tokens) - 2) + 1
            ask_words(packer, first + places, tokens[places])
        else:
            places = _places(rng, count)
            ask_regions(packer, first + len(tokens) + places, [(visual, places)])
        ask_match(packer, range(sequence, sequence + 1), bool(rng.random() < 0.5))
    return packer.finish(samples)


def _tokens(rng: np.random.Generator, length: np.int64, words: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([0, *rng.integers(4, words, int(length) - 2), 2], np.int64)


def _places(rng: np.random.Generator, size: int | np.int64) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    chosen = np.flatnonzero(rng.random(int(size)) < MASKED)
    return chosen if len(chosen) else rng.integers(int(size), size=1)
