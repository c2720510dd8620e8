"""Times of operations that are measured one against the other: on a GPU by its own clock, on a CPU by the program's."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

WARM_UP = 2
"""Calls before the first that counts: compilers and tuners have done their work then."""


@dataclass
class Row:
    """One variant of one operation."""

    part: str
    name: str
    seconds: float
    """Median of its calls."""
    least_seconds: float
    error: float | None = None
    """Relative error of its results to those of float32; None where nothing is computed."""
    figures: dict[str, float] = field(default_factory=dict)
    """What follows from the time, by name and unit."""


@dataclass(frozen=True)
class Clock:
    """Times calls on a device."""

    device: torch.device
    repetitions: int

    def times(self, call: Callable[[], object]) -> list[float]:
        """Return the seconds of each call, after some that do not count."""
        for _ in range(WARM_UP):
            call()
        return [self._gpu(call) if self.device.type == "cuda" else self._cpu(call) for _ in range(self.repetitions)]

    def row(self, part: str, name: str, call: Callable[[], object], error: float | None = None) -> Row:
        """Time a variant."""
        times = self.times(call)
        return Row(part, name, statistics.median(times), min(times), error)

    def _gpu(self, call: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def _cpu(self, call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began


def relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest relative error of some tensors, each by its norm."""
    errors = [
        float((mine.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-12))
        for mine, theirs in zip(found, wanted, strict=True)
    ]
    return max(errors)
