"""Captions of different origin in one objective: translations beside captions written anew, Task 1 of a set beside Task 2.

To train on both may be meant, and makes other figures than either: so it is said, at the start and by `m3p data lint`.
"""

from collections.abc import Iterator, Mapping

from m3p.data.shards.manifest import NOT_STATED
from m3p.data.source import Source

COMPARED = {"caption_source": "captions of different sources", "task": "different tasks of a set"}
"""Fields of a manifest's `origin` that differ where captions do, and what messages call that."""


def mixed_origins(sources: Mapping[str, Source]) -> Iterator[str]:
    """Yield a line for each objective of which sources say different things of their captions.

    `sources` has them under "objectives.NAME, FOLDER", as messages call them.
    """
    objectives: dict[str, list[Source]] = {}
    for name, source in sources.items():
        objectives.setdefault(name.partition(", ")[0], []).append(source)
    for objective, mine in objectives.items():
        for field, words in COMPARED.items():
            folders: dict[str, list[str]] = {}
            for source in mine:
                value = source.manifest.origin.get(field, NOT_STATED)
                if value != NOT_STATED:
                    folders.setdefault(value, []).append(str(source.folder))
            if len(folders) > 1:
                listed = "; ".join(f"{value} ({', '.join(where)})" for value, where in folders.items())
                yield f"{objective} mixes {words}: {listed}. Results do not tell them apart; leave one out if that is not meant"
