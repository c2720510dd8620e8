"""Evaluation protocols by name: which pictures and captions are the pool, how ties count, and what is averaged.

The same scores give other figures under another protocol, so every result names its own, and figures of different
protocols never stand in one column. Published tables and the protocols behind them: docs/evaluation.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from m3p.errors import UserError
from m3p.keys import generator
from m3p.recipe.evaluation import ProtocolName
from m3p.retrieval.metrics import Ties
from m3p.retrieval.pool import Pool

Record = Mapping[str, Any]
"""A picture: {"id", "concept"?, "captions": {language: text or texts}}."""


@dataclass(frozen=True)
class Protocol:
    """One way to make a pool of pictures and captions, and to count what is found in it."""

    name: ProtocolName
    meaning: str
    """What it is, in one sentence, for documents and messages."""
    images: int | None = None
    """Pictures that the pool must have; None: any number."""
    first_images: int | None = None
    """The pool is so many pictures from the start of the data, or all if there are fewer; None: all."""
    captions: int | None = None
    """Captions of a picture in a language that count, the first as stored; None: all."""
    fills: bool = False
    """Whether a picture with fewer captions has some of them repeated, and one with more has some drawn, both at random."""
    merges: bool = False
    """Whether a caption that a picture has twice, word for word, counts once."""
    folds: int = 1
    """Equal parts, in stored order, that are each ranked alone; figures are the mean over them."""
    ties: Ties = "against"
    """Whether equal scores count against the system, or candidates that score alike stand in stored order."""
    figure: str = "mean_recall"
    """The figure that its published tables print."""

    def pool(self, records: Sequence[Record], languages: Sequence[str]) -> Pool:
        """Return the pool of the pictures `records` [N] and their captions in `languages`.

        It holds the pictures in the order of `records`, all of them or the first of them. Raises UserError where the protocol
        wants another number of pictures, or a language captions none.
        """
        if self.images is not None and len(records) != self.images:
            raise UserError(
                f"protocol {self.name}: its pool has {self.images:,} pictures, and here are {len(records):,} that can be read; "
                "give it the data of that protocol, or score these by --protocol native"
            )
        chosen = [self._choose(record) for record in records[: self.first_images]]
        return Pool.of(chosen, languages, merge=self.merges, folds=self.folds)

    def _choose(self, record: Record) -> dict[str, Any]:
        """Return the record with the captions that count."""
        captions = {}
        for language, given in record["captions"].items():
            texts = [given] if isinstance(given, str) else list(given)
            captions[language] = texts if self.captions is None else self._take(record, language, texts, self.captions)
        return {**record, "captions": captions}

    def _take(self, record: Record, language: str, texts: list[str], number: int) -> list[str]:
        """Return `number` of the captions of a picture, or fewer where the protocol does not fill up."""
        if not self.fills or not texts:
            return texts[:number]
        rng = generator("protocol", self.name, language, str(record["id"]))
        if len(texts) >= number:
            return [texts[place] for place in sorted(rng.permutation(len(texts))[:number].tolist())]
        return [*texts, *(texts[place] for place in rng.integers(len(texts), size=number - len(texts)).tolist())]


NATIVE = Protocol("native", "The real captions, none repeated or left out, and every picture.", merges=True)

_ALL = (
    NATIVE,
    Protocol(
        "m3p-compat",
        "M3P's released code: the first 1,000 pictures, exactly five captions each, drawn where there are more and repeated "
        "where there are fewer, and ties by order. Repeats push R@5 and R@10 of pictures that ask for captions down.",
        first_images=1000,
        captions=5,
        fills=True,
        ties="order",
    ),
    Protocol(
        "folds5x1k",
        "The 5,000 test pictures of MSCOCO in five folds of 1,000, the first five captions each; figures are means over folds.",
        images=5000,
        captions=5,
        folds=5,
    ),
    Protocol(
        "full5k",
        "The 5,000 test pictures of MSCOCO in one pool, the first five captions each.",
        images=5000,
        captions=5,
    ),
    Protocol(
        "iglue",
        "xFlickr&CO of IGLUE: 2,000 pictures with one caption each; its tables print R@1 each way.",
        images=2000,
        captions=1,
        figure="R@1",
    ),
    Protocol(
        "xtd",
        "XTD: 1,000 pictures of MSCOCO with one caption each; its tables print R@1 or R@10.",
        images=1000,
        captions=1,
        figure="R@1",
    ),
    Protocol(
        "xm3600",
        "Crossmodal-3600: 3,600 pictures with all their captions; its tables print R@1 each way.",
        images=3600,
        figure="R@1",
    ),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
assert tuple(PROTOCOLS) == get_args(ProtocolName), "the names that a recipe may hold are those of the protocols"
