"""What was bad, for a human: `bad_samples.txt` names every sample, `bad_samples.json` counts them by shard and reason."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from m3p.atomic import write_text

_LINE = re.compile(r"step (\d+): (.*)\n?")


class BadReport:
    """The report of one run; a run that goes on forgets what it will meet again.

    Args:
        folder: of the run.
        first_step: steps that are done.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._list, self._table = folder / "bad_samples.txt", folder / "bad_samples.json"
        self.shards: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Shard -> reason -> samples."""
        if self._list.is_file():
            found = [_LINE.fullmatch(line) for line in self._list.read_text(errors="replace").splitlines(keepends=True)]
            kept = [(int(line[1]), line[2]) for line in found if line and int(line[1]) <= first_step]
            write_text(self._list, "".join(f"step {step}: {sample}\n" for step, sample in kept))
            self._count([sample for _, sample in kept])
            self._write_table()

    @property
    def reasons(self) -> Counter[str]:
        """Samples by reason, over all shards."""
        return sum(self.shards.values(), Counter())

    def add(self, step: int, bad: Sequence[str]) -> None:
        """Note the samples that were bad in a step, each as "SOURCE/SHARD, sample NUMBER: REASON"."""
        if not bad:
            return
        with self._list.open("a") as file:
            file.writelines(f"step {step}: {sample}\n" for sample in bad)
        self._count(bad)
        self._write_table()

    def _count(self, bad: Sequence[str]) -> None:
        for sample in bad:
            shard, reason = kind(sample)
            self.shards[shard][reason] += 1

    def _write_table(self) -> None:
        worst = sorted(self.shards.items(), key=lambda item: (-item[1].total(), item[0]))
        table = {
            "samples": sum(counts.total() for _, counts in worst),
            "reasons": dict(self.reasons.most_common()),
            "shards": {shard: dict(counts.most_common()) for shard, counts in worst},
        }
        write_text(self._table, json.dumps(table, indent=1, ensure_ascii=False) + "\n", durable=False)


def kind(sample: str) -> tuple[str, str]:
    """Return shard and kind of reason of a bad sample: its details, such as numbers and names, left out."""
    place, _, reason = sample.partition(": ")
    reason = re.split(r" ?[:('\"]", reason, maxsplit=1)[0]
    return place.partition(", sample ")[0], re.sub(r"(?<![-\w])\d[\d,]*", "N", reason).strip() or "unknown"
