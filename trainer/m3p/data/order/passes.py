"""The passes of a step: which of its turns the network computes together, the same on all ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from m3p.data.order.plan import Plan, Turn


@dataclass(frozen=True)
class PassPlan:
    """Turns that the network computes together."""

    step: int
    """From 1."""
    turns: Sequence[Turn]
    last: bool
    """Whether it is the last pass of its step."""


class Passes:
    """The passes of every step, the same on all ranks.

    Args:
        plan: the turns.
        shares: objective -> the share of a rank's micro-batch that one of its turns fills. Turns that follow each other are
            computed together while their shares sum to at most 1. Objectives of which a turn is several micro-batches are
            not named; without any, every turn is a pass of its own.
    """

    def __init__(self, plan: Plan, shares: Mapping[str, Fraction] | None = None) -> None:
        self._plan, self._shares = plan, shares or {}

    def of_step(self, number: int) -> list[PassPlan]:
        """Return the passes of step `number`, from 1, in order."""
        groups: list[list[Turn]] = []
        room = Fraction(0)
        for turn in self._plan.turns(number - 1):
            share = self._shares.get(turn.objective)
            if share is None or share > room or not groups:
                groups.append([])
                room = Fraction(1)
            groups[-1].append(turn)
            room = Fraction(0) if share is None else room - share
        return [PassPlan(number, group, group is groups[-1]) for group in groups]
