"""The forms in which an objective packs pairs of text and picture, for tasks to ask about."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3p.batch import Picture
from m3p.objectives.tasks.negatives import MatchingConfig

Ids = NDArray[np.int64]


class Form(Enum):
    """A form of a pair."""

    ALONE = auto()
    """Text and picture, each in a sequence of its own."""
    JOINT = auto()
    """Text and picture in one sequence."""
    MISMATCHED = auto()
    """In one sequence, with another pair's text or another pair's picture."""


class Alone(NamedTuple):
    """N pairs whose texts and pictures stand alone."""

    texts: range
    """Numbers of the sequences of the texts: [N]."""
    pictures: range
    """Numbers of the sequences of the pictures: [N]."""
    rows: Ids
    """Place of each pair in its turn: [N]."""
    captions: list[str]
    """[N] names of captions: equal ones mean equal captions."""
    concepts: list[str]
    """[N] names of what the pictures show: equal ones mean that captions of one fit the other."""
    contents: list[str]
    """[N] names of the pictures by their content: equal ones mean equal pictures, in whatever sources."""
    published: list[str]
    """[N] names of the pictures in published sets: equal ones mean equal pictures, in whatever sources."""


class Joint(NamedTuple):
    """N pairs in one sequence each, as they are seen: words or regions masked. Of mismatched pairs nothing masked is asked."""

    sequences: range
    """Their numbers: [N]."""
    words: Ids
    """Slots of the masked words: [K]."""
    labels: Ids
    """True tokens of the masked words: [K]."""
    regions: Ids
    """Slots of the masked regions: [M]."""
    pictures: Sequence[tuple[Picture, Ids]]
    """Each true picture with masked regions, and their places in it; M in all, in the order of `regions`."""


@dataclass
class PackedPairs:
    """The pairs of a micro-batch in each form that the objective's tasks ask about; None for a form that is not packed."""

    alone: Alone | None = None
    joint: Joint | None = None
    mismatched: Joint | None = None
    mismatched_of: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    """The number, in `joint`, of the true pair that each mismatched one belongs to."""
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    """How the objective wants its pairs matched."""
