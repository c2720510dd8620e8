"""Python's garbage collector, at fixed steps: left alone, it stops one rank at a time while all others wait for it."""

import gc
from types import TracebackType

EVERY = 100
"""Steps between collections; a rank collects in the same steps as every other."""


class GarbageCollection:
    """While it is open the collector runs at `step` alone. What exists at its start is never looked at again."""

    def __enter__(self) -> "GarbageCollection":
        gc.collect()
        gc.freeze()
        gc.disable()
        return self

    def step(self, number: int) -> None:
        """Collect after step `number` where it is due."""
        if number % EVERY == 0:
            gc.collect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.enable()
        gc.unfreeze()
