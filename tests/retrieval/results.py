"""Evaluations to test with, made of noise that belongs to picture and caption."""

import io
from typing import Any

import numpy as np

from m3p.console import PlainConsole
from m3p.keys import generator
from m3p.retrieval.metrics import rank_both_ways
from m3p.retrieval.pool import Pool
from m3p.retrieval.result import Conditions, Evaluation
from m3p.retrieval.table import print_table

WORDS = ["dog", "cat [1,\n 2]", "dog"] + [f"thing {number}" for number in range(37)]
RECORDS: list[dict[str, Any]] = [
    {"id": f"picture-{place:02}", "captions": {"en": text, "de": f"ein {text}", "cs": [text, f"{text} zwei"]}}
    for place, text in enumerate(WORDS)
]


def conditions(**changes: Any) -> Conditions:
    given = {"dataset": "toys", "split": "dev", "scoring": "dual", "caption_source": "human", "system": "run-1"}
    return Conditions(**{**given, "captioned_languages": ["en"], "step": 7, "seed": 1, **changes})


def evaluation(noise: float = 1.0, records: list[dict[str, Any]] = RECORDS, **changes: Any) -> Evaluation:
    """Scores that belong to the picture and the caption, whatever their places in the pool."""
    pool = Pool.of(records, ["en", "de", "cs"])
    found = {}
    for language, captions in pool.captions.items():
        scores = [
            [generator(image, caption.concept, caption.text, language).normal() for caption in captions]
            for image in pool.images
        ]
        found[language] = rank_both_ways(noise * np.array(scores) + pool.right(language), pool.right(language))
    return Evaluation.of(pool, found, conditions(**changes))


def printed(what: Any) -> str:
    console = PlainConsole(file=io.StringIO(), width=80)
    if isinstance(what, Evaluation):
        print_table(what, console)
    else:
        console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
