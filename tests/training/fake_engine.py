"""An engine that computes nothing, for tests of what is around it: losses are told, and what is asked of it is noted."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from m3p.checkpoints.fragment import Fragment, Progress
from m3p.training.engine import Update
from m3p.training.losses import StepLosses
from m3p.training.turns import TurnData

CPU = torch.device("cpu")


class FakeEngine:
    """Implements `training/engine.py`'s protocol.

    Args:
        losses: step (from 1) -> the loss of each of its terms; 1.0 where none is given.
        broken: steps whose gradient is not finite.
    """

    precision = torch.float32

    def __init__(self, losses: Mapping[int, float] | None = None, broken: Sequence[int] = ()) -> None:
        self._losses, self._broken = losses or {}, broken
        self.calls: list[tuple[object, ...]] = []
        self._step, self._updates, self._ended = 1, 0, False

    def train_mode(self) -> None:
        self.calls.append(("train",))

    def turns(self, turns: Sequence[TurnData], losses: StepLosses, last: bool) -> None:
        assert not self._ended, "a turn after the last one"
        for data in turns:
            self.calls.append(("turn", data.turn.objective, len(data.batches), last))
            of_turn = losses.begin(data.turn.objective, data.tasks, dict.fromkeys(data.tasks, 2), CPU)
            value = torch.tensor(self._losses.get(self._step, 1.0))
            for task in data.tasks:
                of_turn.add(task, 2 * value)
            losses.micro_batches += [value] * len(data.batches)
        self._ended = last

    def step(self, share: float, losses: StepLosses, ceiling: float | None) -> Update:
        assert self._ended, "a step before its last turn"
        apply = bool(losses.accepted(ceiling))
        made = apply and self._step not in self._broken
        self.calls.append(("step", round(share, 6), apply))
        self._updates += made
        norm = float("nan") if self._step in self._broken else 0.5
        self._step, self._ended = self._step + 1, False
        return Update(share * 1e-3, norm, made)

    def fragments(self) -> Iterator[Fragment]:
        yield Fragment("w", (1,), 0, 1, range(1), {"weight": torch.zeros(1)})

    def parameters(self) -> int:
        return 1

    def progress(self) -> Progress:
        return Progress(self._updates)

    def set_progress(self, progress: Progress) -> None:
        self._updates = progress.updates

    def describe(self) -> dict[str, str]:
        return {"engine": "none"}
