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
class Failed:
    """A variant that could not be measured, such as one that does not fit the GPU's memory."""

    part: str
    name: str
    why: str


@dataclass(frozen=True)
class Missing:
    """A variant that is not begun, since something that it needs is not here, such as a GPU or a package."""

    part: str
    name: str
    why: str


def attempt(part: str, name: str, measure: Callable[[], Row]) -> Row | Failed:
    """Return what `measure` does, or why it failed: one variant that fails must not take the others' results with it."""
    try:
        return measure()
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    # Here, where the error no longer holds the tensors of the calls that it passed.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Failed(part, name, why)


@dataclass(frozen=True)
class Clock:
    """Times calls on a device."""

    device: torch.device
    repetitions: int

    @property
    def on_gpu(self) -> bool:
        """Whether what only a GPU can run is to be measured too."""
        return self.device.type == "cuda"

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
