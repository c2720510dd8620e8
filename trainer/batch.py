"""The packed micro-batch: the one thing that data, objectives and model have in common.

Sequences of any kind (words, a picture, or both) lie side by side on one packed axis of T slots, without padding.
A task says what it wants from the network by the slots or sequences that it names in `targets`.
"""

import threading
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = TypeVar("Numbers", NDArray[np.float32], Tensor)


@dataclass(frozen=True)
class VisualTokens:
    """A picture as the network takes it: R tokens, each with a feature and a box."""

    features: NDArray[np.float32] | NDArray[np.uint8]
    """[R, F]: numbers as the network takes them, or pixels 0..255, which travel in a quarter of the bytes."""
    boxes: NDArray[np.float32]
    """[R, 4] as x1, y1, x2, y2 in 0..1 of the picture."""
    class_ids: NDArray[np.int64] | None = None
    """[R] object class of each token, or None where the source has none."""

    @property
    def neutral(self) -> int:
        """What stands in `features` where nothing is to be seen: 0, or mid grey."""
        return 128 if self.features.dtype == np.uint8 else 0

    def numbers(self, places: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Return the features at `places` [K] as the network sees them, float32 [K, F]."""
        chosen = self.features[places].astype(np.float32)
        return scaled(chosen) if self.features.dtype == np.uint8 else chosen


class Sequence(NamedTuple):
    """One sequence before packing: words first, then the picture's tokens."""

    token_ids: NDArray[np.int64]
    """[L], at least one: `<s>` stands in front, also of a picture alone."""
    visual: VisualTokens | None = None


@dataclass
class Batch:
    """A packed micro-batch. T slots, W words, V visual tokens, S sequences."""

    token_ids: Tensor
    """[W] int64."""
    token_slots: Tensor
    """[W] int64: the slot of each word."""
    token_places: Tensor
    """[W] int64: 0, 1, ... inside its sequence."""
    visual_features: Tensor
    """[V, F] float32, or uint8 where the visual source gives pixels."""
    visual_boxes: Tensor
    """[V, 4] float32."""
    visual_slots: Tensor
    """[V] int64."""
    lengths: Tensor
    """[S] int64; they sum to T."""
    targets: dict[str, dict[str, Tensor]]
    """Task name -> its tensors; `slots` [M] or `sequences` [N] says where the task's head reads."""
    longest: int
    """Slots of the longest sequence; a plain number, so that reading it never waits for the device."""
    samples: int
    """Samples of the data that this micro-batch holds; 0 when a rank has none left of a turn."""
    names: list[str] = field(default_factory=list)
    """Shard and key of each sample, for messages."""
    bad: list[str] = field(default_factory=list)
    """Bad samples that were met and replaced: where, and why."""
    counts: dict[str, int] = field(default_factory=dict)
    """What the monitor adds up: words seen, words switched to a language, ..."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; copies do not wait where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        own: dict[str, Any] = {
            f.name: change(getattr(self, f.name)) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)
        }
        targets = {task: {name: change(tensor) for name, tensor in of.items()} for task, of in self.targets.items()}
        return replace(self, **own, targets=targets)

    @property
    def tokens(self) -> int:
        """Slots in use; none is padding."""
        return len(self.token_slots) + len(self.visual_slots)


class Packer:
    """Collects sequences and targets, and packs them to a `Batch`."""

    def __init__(self, feature_size: int) -> None:
        self.feature_size = feature_size
        self._sequences: list[Sequence] = []
        self._slots = 0
        self._targets: dict[str, dict[str, list[NDArray[np.generic]]]] = {}
        self.names: list[str] = []
        self.counts: dict[str, int] = {}

    def add(self, sequence: Sequence) -> tuple[int, int]:
        """Append a sequence; return its number and its first slot."""
        number, first = len(self._sequences), self._slots
        self._sequences.append(sequence)
        self._slots += len(sequence.token_ids) + _visual_length(sequence)
        return number, first

    def target(self, task: str, **arrays: NDArray[np.generic]) -> None:
        """Append rows to the tensors of `task`; all arrays of a call have the same first dimension."""
        lists = self._targets.setdefault(task, {name: [] for name in arrays})
        for name, array in arrays.items():
            lists[name].append(array)

    def count(self, name: str, number: int) -> None:
        """Add `number` to the monitor's counter `name`."""
        self.counts[name] = self.counts.get(name, 0) + number

    def finish(self, samples: int, canvas: "Painted | None" = None) -> Batch:
        """Pack everything. Without a sequence, one of a lone `<s>` keeps this rank in step with the others.

        `canvas` is where the pictures were decoded to: if they are packed as they lie there, they are not copied.
        """
        if not self._sequences:
            self.add(Sequence(np.zeros(1, np.int64)))
        pictures = [(number, s.visual) for number, s in enumerate(self._sequences) if s.visual is not None]
        words = np.array([len(s.token_ids) for s in self._sequences], np.int64)
        lengths = words.copy()
        for number, visual in pictures:
            lengths[number] += len(visual.features)
        starts = lengths.cumsum() - lengths
        before = words.cumsum() - words
        places = np.arange(words.sum())
        slots = places + np.repeat(starts - before, words)
        places -= np.repeat(before, words)
        rows = lengths - words
        seen = rows.cumsum() - rows
        return Batch(
            token_ids=torch.from_numpy(np.concatenate([s.token_ids for s in self._sequences])),
            token_slots=torch.from_numpy(slots),
            token_places=torch.from_numpy(places),
            visual_features=_features([visual.features for _, visual in pictures], self.feature_size, canvas),
            visual_boxes=_stack([visual.boxes for _, visual in pictures], 4),
            visual_slots=torch.from_numpy(np.arange(rows.sum()) + np.repeat(starts + words - seen, rows)),
            lengths=torch.from_numpy(lengths),
            targets={
                task: {name: torch.from_numpy(np.concatenate(parts)) for name, parts in arrays.items()}
                for task, arrays in self._targets.items()
            },
            longest=int(lengths.max()),
            samples=samples,
            names=self.names,
            counts=self.counts,
        )


def scaled(pixels: Numbers) -> Numbers:
    """Return pixels 0..255 as -1..1."""
    return pixels / 127.5 - 1


def _visual_length(sequence: Sequence) -> int:
    return 0 if sequence.visual is None else len(sequence.visual.features)


Room = Callable[[tuple[int, ...], torch.dtype], Tensor | None]


def _fresh(shape: tuple[int, ...], kind: torch.dtype) -> Tensor | None:
    return None


class _Own(threading.local):
    room: Room = staticmethod(_fresh)


_own = _Own()


def set_room(room: Room) -> None:
    """Pack pictures, from now on and in this thread, into what `room` gives for a shape, where it gives something."""
    _own.room = room


def find_room(shape: tuple[int, ...], kind: torch.dtype) -> Tensor | None:
    """Return a tensor where this thread packs its pictures, or None where there is no such place."""
    return _own.room(shape, kind)


class Painted(Protocol):
    """Where pictures were decoded to."""

    rooms: "list[NDArray[np.uint8] | None]"
    """[R, F] each."""
    whole: Tensor | None
    """All of them end to end, where that memory may be handed on."""


def _features(arrays: Sequences[NDArray[Any]], width: int, canvas: Painted | None) -> Tensor:
    """Lay features [R, width] end to end, unless they already lie so on the canvas."""
    if canvas is None or canvas.whole is None or len(arrays) != len(canvas.rooms):
        return _stack(arrays, width)
    in_place = all(array is room for array, room in zip(arrays, canvas.rooms, strict=True))
    return canvas.whole if in_place else _stack(arrays, width)


def _stack(arrays: Sequences[NDArray[Any]], width: int) -> Tensor:
    """Lay rows [R, width] end to end."""
    if not arrays:
        return torch.zeros(0, width)
    shape = (sum(len(array) for array in arrays), width)
    kind = torch.uint8 if arrays[0].dtype == np.uint8 else torch.float32
    whole = find_room(shape, kind) if width > 4 else None  # boxes are small
    whole = torch.empty(shape, dtype=kind) if whole is None else whole
    np.concatenate(arrays, out=whole.numpy())
    return whole
