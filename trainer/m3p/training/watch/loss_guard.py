"""Guards a run against single bad steps: a loss or gradient that is not finite, and loss spikes.

The global losses of a step are the same numbers on every rank, so every rank judges alike without asking. A step is refused
before its last backward, on the device and with nobody waiting (`StepLosses.accepted`): the engine drops the update, as it
drops one whose gradients are not finite. The guard reads the losses after that, and says why.
"""

import json
import math
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from m3p.data.order.plan import Turn
from m3p.distributed import gather_objects, is_main
from m3p.errors import UserError
from m3p.training.losses import Figures

RECENT = 64
"""Losses that a spike is compared with."""
ENOUGH = 16
"""Losses before which no spike is called."""


@dataclass(frozen=True)
class Verdict:
    """What the guard says of a step."""

    refused: str | None = None
    """Why the update must not be made, or None."""
    warning: str | None = None
    """What people should know of a step whose update may be made, or None."""

    @property
    def apply(self) -> bool:
        """Whether the update may be made."""
        return self.refused is None


class Guard:
    """Judges steps; its memory goes into checkpoints, so that a resumed run judges as the unbroken one.

    Args:
        folder: the run folder; refused steps are listed in skipped.jsonl there.
        max_skipped: steps refused in a row that end the run.
        spike: how many times the median of recent losses makes a spike; None: none is looked for.
        skip_spikes: refuse the step of a spike; else it is only said.
    """

    def __init__(self, folder: Path, max_skipped: int, spike: float | None, skip_spikes: bool) -> None:
        self._folder, self._max_skipped, self._spike, self._skip_spikes = folder, max_skipped, spike, skip_spikes
        self._recent: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        """Of the steps of each kind: where a step is no whole round, one objective's loss says nothing of another's."""
        self._in_a_row = 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"recent": {kind: list(losses) for kind, losses in self._recent.items()}, "in_a_row": self._in_a_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        for kind, losses in state.get("recent", {}).items():
            self._recent[kind].extend(losses)
        self._in_a_row = state.get("in_a_row", 0)

    def ceiling(self, tasks: Iterable[str]) -> float | None:
        """Return the loss above which a step of `tasks` ("OBJECTIVE/TASK") makes no update; None where there is none."""
        median = self._median(_kind(tasks)) if self._skip_spikes else None
        return None if median is None or self._spike is None else self._spike * median

    def judge(self, figures: Figures) -> Verdict:
        """Say of a step by its losses whether its update may be made, as `StepLosses.accepted` does on the device, and why."""
        broken = [f"{name} is {value}" for name, value in figures.tasks.items() if not math.isfinite(value)]
        if broken:
            return Verdict(refused=f"loss not finite: {', '.join(broken)}")
        spike = self._find_spike(figures)
        return Verdict(refused=spike) if self._skip_spikes else Verdict(warning=spike)

    def _find_spike(self, figures: Figures) -> str | None:
        """Return the words for a loss far above the recent ones of steps of the same objectives, or None."""
        median = self._median(_kind(figures.tasks))
        if self._spike is None or median is None or figures.loss <= self._spike * median:
            return None
        return f"loss spike: {figures.loss:.4g}, the median of recent steps is {median:.4g}"

    def _median(self, kind: str) -> float | None:
        """Return the median loss of recent steps of a kind; None where they are too few."""
        recent = self._recent[kind]
        return statistics.median(recent) if len(recent) >= ENOUGH else None

    def made(self, figures: Figures) -> None:
        """Note that the update of a step with these losses was made."""
        self._recent[_kind(figures.tasks)].append(figures.loss)
        self._in_a_row = 0

    def skipped(self, step: int, reason: str, turns: Sequence[tuple[Turn, list[str]]], parts: Sequence[Tensor]) -> str:
        """Note a refused step and list the samples that it is due to; return a line for people.

        `turns` and `parts` are of this rank's micro-batches: turn and names of the samples, and losses. Every rank calls it.
        Where no micro-batch is broken by itself (a gradient overflowed, a spike), all are listed. Raises UserError after too
        many in a row.
        """
        self._in_a_row += 1
        found = _suspects(turns, parts)
        where = "; ".join(
            f"turn {one['turn']} ({one['objective']}): {', '.join(one['samples'][:8])}" for one in found[:4]
        )
        line = f"step {step} makes no update: {reason}. Samples: {where}{' ...' if len(found) > 4 else ''}"
        if is_main():
            record = {"step": step, "reason": reason, "in_a_row": self._in_a_row, "micro_batches": found}
            with (self._folder / "skipped.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
        if self._in_a_row >= self._max_skipped:
            raise UserError(
                f"{line}\nThat is {self._in_a_row} steps in a row without an update (run.max_skipped), so the run ends. All are "
                f"listed in {self._folder / 'skipped.jsonl'}. Lower optimizer.learning_rate, or mend the data; starting again "
                "goes on from the last checkpoint"
            )
        return line


def _kind(tasks: Iterable[str]) -> str:
    """Return the objectives of a step of `tasks` ("OBJECTIVE/TASK")."""
    return ",".join(sorted({name.partition("/")[0] for name in tasks}))


def _suspects(turns: Sequence[tuple[Turn, list[str]]], parts: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Return the micro-batches of all ranks whose own loss is not finite; all of them, where none is."""
    mine: list[dict[str, Any]] = [
        {
            "turn": turn.number,
            "objective": turn.objective,
            "samples": names,
            "broken": not math.isfinite(float(part)),
        }
        for (turn, names), part in zip(turns, parts, strict=True)
    ]
    every = enumerate(gather_objects(mine))
    found = [{**one, "rank": rank} for rank, of_rank in every for one in of_rank if one["samples"]]
    return [one for one in found if one["broken"]] or found
