"""What the monitor adds up of a pass: samples, tokens, operations, languages, bad samples."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from m3p.batch import Batch
from m3p.training.watch.process_memory import resident

Count = Callable[[Batch], int]
"""Returns the operations of training on a micro-batch that is on the CPU."""


class Seen(NamedTuple):
    """What one rank saw in a pass."""

    counts: Counter[str]
    """Counter -> number; with the resident memory of the rank's processes in bytes where the pass ends its step."""
    bad: list[str]
    """Bad samples that were met and replaced: where, and why."""


def see(objectives: Sequence[str], batches: Sequence[Sequence[Batch]], count: Count | None, last: bool) -> Seen:
    """Return what there is to see in the micro-batches of a pass, turn by turn. `last`: the pass ends its step."""
    seen = Seen(Counter(), [])
    for objective, of_turn in zip(objectives, batches, strict=True):
        for batch in of_turn:
            _add(seen, objective, batch)
            seen.counts["flops"] += count(batch) if count else 0
    if last:
        seen.counts.update({f"resident/{name}": size for name, size in resident().items()})
    return seen


def _add(seen: Seen, objective: str, batch: Batch) -> None:
    seen.counts["samples"] += batch.samples
    seen.counts["tokens"] += batch.tokens if batch.samples else 0
    seen.counts[f"samples/{objective}"] += batch.samples
    seen.counts["bad_samples"] += len(batch.bad)
    seen.bad.extend(batch.bad)
    for name, number in batch.counts.items():
        seen.counts[f"{objective}/{name}"] += number
