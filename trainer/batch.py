"""The packed micro-batch: the one thing that data, objectives and model have in common.

Sequences of any kind (words, a picture, or both) lie side by side on one packed axis of T slots, without padding.
A task says what it wants from the network by the slots or sequences that it names in `targets`.
"""

import threading
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = TypeVar("Numbers", NDArray[np.float32], Tensor)


class VisualTokens(NamedTuple):
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
    """A packed micro-batch. T slots, W words, V visual tokens, S sequences.

    A picture that several sequences show is held, and embedded, once: R rows, of which each visual token shows one.
    """

    token_ids: Tensor
    """[W] int64."""
    token_slots: Tensor
    """[W] int64: the slot of each word."""
    token_places: Tensor
    """[W] int64: 0, 1, ... inside its sequence."""
    visual_features: Tensor
    """[R, F] float32, or uint8 where the visual source gives pixels."""
    visual_boxes: Tensor
    """[R, 4] float32."""
    visual_rows: Tensor
    """[V] int64: the row of each visual token."""
    visual_slots: Tensor
    """[V] int64: its slot."""
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
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory."""
        return self.map(Tensor.pin_memory)

    def map(self, change: Callable[[Any], Any]) -> "Batch":
        """Return the batch with something else in place of each tensor: one on a device, or a note where it lies."""
        content: dict[str, Any] = dict(vars(self))
        for name in TENSORS:
            content[name] = change(content[name])
        content["targets"] = {
            task: {name: change(tensor) for name, tensor in of.items()} for task, of in self.targets.items()
        }
        return Batch(**content)

    @property
    def tokens(self) -> int:
        """Slots in use; none is padding."""
        return len(self.token_slots) + len(self.visual_slots)


TENSORS = tuple(field.name for field in fields(Batch) if field.type is Tensor)
"""Names of the fields of a `Batch` that are tensors."""


class Packer:
    """Collects sequences and targets, and packs them to a `Batch`."""

    def __init__(self, feature_size: int) -> None:
        self.feature_size = feature_size
        self._ids: list[NDArray[np.int64]] = []
        self._words: list[int] = []
        """Of each sequence."""
        self._pictures: list[tuple[int, VisualTokens]] = []
        """Number of a sequence, and the picture behind its words."""
        self._slots = 0
        self._targets: dict[str, dict[str, list[NDArray[np.generic]]]] = {}
        self.names: list[str] = []
        self.counts: dict[str, int] = {}

    def add(self, sequence: Sequence) -> tuple[int, int]:
        """Append a sequence; return its number and its first slot."""
        number, first = len(self._words), self._slots
        self._ids.append(sequence.token_ids)
        self._words.append(len(sequence.token_ids))
        self._slots += len(sequence.token_ids)
        if sequence.visual is not None:
            self._pictures.append((number, sequence.visual))
            self._slots += len(sequence.visual.features)
        return number, first

    def add_words(self, token_ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
        """Append sequences of words alone, end to end in `token_ids` [W], of `lengths` [N]; return the first one's first slot."""
        first = self._slots
        self._ids.append(token_ids)
        self._words += lengths.tolist()
        self._slots += len(token_ids)
        return first

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
        if not self._words:
            self.add(Sequence(np.zeros(1, np.int64)))
        words = np.array(self._words)
        pictures = _Pictures(self._pictures)
        shown = np.zeros_like(words)
        shown[[number for number, _ in self._pictures]] = pictures.lengths
        lengths = words + shown
        starts = lengths.cumsum() - lengths
        before = words.cumsum() - words
        numbers = np.arange(words.sum())
        slots = numbers + np.repeat(starts - before, words) if self._pictures else numbers
        places = numbers - np.repeat(before, words)
        seen = shown.cumsum() - shown
        visual_slots = np.repeat(starts + words - seen, shown)
        visual_slots += pictures.numbers
        return Batch(
            token_ids=torch.from_numpy(np.concatenate(self._ids)),
            token_slots=torch.from_numpy(slots),
            token_places=torch.from_numpy(places),
            visual_features=_features([visual.features for visual in pictures.held], self.feature_size, canvas),
            visual_boxes=_stack([visual.boxes for visual in pictures.held], 4),
            visual_rows=torch.from_numpy(pictures.rows),
            visual_slots=torch.from_numpy(visual_slots),
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


class _Pictures:
    """The pictures of a micro-batch, each held once however often it is shown."""

    def __init__(self, shown: list[tuple[int, VisualTokens]]) -> None:
        owners = [id(visual.features) for _, visual in shown]
        self.held = list({owner: visual for owner, (_, visual) in zip(owners, shown, strict=True)}.values())
        self.lengths = np.array([len(visual.features) for _, visual in shown], np.int64)
        """Of each one shown."""
        self.numbers = np.arange(self.lengths.sum())
        """Of the tokens of all shown, end to end."""
        self.rows = self.numbers
        """Of these tokens, among those of all held."""
        if len(self.held) < len(shown):
            ends = np.cumsum([0, *(len(visual.features) for visual in self.held)])
            first = dict(zip([id(visual.features) for visual in self.held], ends.tolist(), strict=False))
            before = self.lengths.cumsum() - self.lengths
            self.rows = np.repeat([first[owner] for owner in owners] - before, self.lengths) + self.numbers


def scaled(pixels: Numbers) -> Numbers:
    """Return pixels 0..255 as -1..1."""
    return pixels / 127.5 - 1


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
    whole = find_room(shape, kind)
    whole = torch.empty(shape, dtype=kind) if whole is None else whole
    np.concatenate(arrays, out=whole.numpy())
    return whole
