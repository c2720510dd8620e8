"""The packed micro-batch: the one thing that data, objectives and model have in common.

Sequences of any kind (words, a picture, or both) lie side by side on one packed axis of T slots, without padding.
A task says what it wants from the network by the slots or sequences that it names in `targets`.
"""

import operator
import threading
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Picture(Protocol):
    """A picture that the network sees as R tokens, in the form that its visual source's embedder takes."""

    @property
    def features(self) -> NDArray[np.float32] | NDArray[np.uint8]:
        """[N, ...]: the pictures of a micro-batch are laid end to end along the first axis."""

    @property
    def boxes(self) -> NDArray[np.float32] | None:
        """[R, 4] as x1, y1, x2, y2 in 0..1 of the picture, or None where the source needs none."""

    @property
    def class_ids(self) -> NDArray[np.int64] | None:
        """[R] object class of each token, or None where the source has none."""

    @property
    def tokens(self) -> int:
        """R."""

    def targets_at(self, places: NDArray[np.int64]) -> NDArray[np.float32] | NDArray[np.uint8]:
        """Return the tokens at `places` [K] as numbers to be predicted, [K, F]; uint8 are pixels, which the task scales."""

    def blank(self, places: NDArray[np.int64]) -> "tuple[Picture, NDArray[np.int64]]":
        """Return what is seen where the tokens at `places` [K] are hidden: a picture of nothing, and the token of it for each."""


class Sequence(NamedTuple):
    """One sequence before packing: words first, then the picture's tokens."""

    token_ids: NDArray[np.int64]
    """[L], at least one: `<s>` stands in front, also of a picture alone."""
    visual: Picture | None = None


@dataclass
class Batch:
    """A packed micro-batch. T slots, W words, V visual tokens, S sequences.

    A picture that several sequences show is held, and embedded, once: R rows, of which each visual token shows one. Where
    tokens of it are hidden in a sequence, they show blank rows instead: no copy of the picture is needed.
    What has a number for each word or visual token follows from what has one for each sequence, and is computed where it is
    used: less to pack, and to move to the device. Plain numbers are there to be read without waiting for the device.
    """

    token_ids: Tensor
    """[W] int64."""
    words: Tensor
    """[S] int64: words of each sequence; they sum to W."""
    lengths: Tensor
    """[S] int64: slots of each sequence; they sum to T."""
    visual_starts: Tensor
    """[S] int64: the row of the first token of the picture that a sequence shows; 0 where it shows none."""
    visual_features: Tensor
    """[N, ...]: what the embedder of the visual source turns into R rows; float32, or uint8 for pixels."""
    visual_boxes: Tensor
    """[R, 4] float32; [0, 4] where the visual source needs none."""
    hidden: Tensor
    """[H] int64: which of the visual tokens are hidden from the network."""
    hidden_rows: Tensor
    """[H] int64: the rows, blank ones, that they show instead."""
    targets: dict[str, dict[str, Tensor]]
    """Task name -> its tensors; `slots` [M] or `sequences` [N] says where the task's head reads."""
    tokens: int
    """T: none is padding."""
    embedded_rows: int
    """R."""
    longest: int
    """Slots of the longest sequence."""
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
        content: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        for name in TENSORS:
            content[name] = change(content[name])
        content["targets"] = {
            task: {name: change(tensor) for name, tensor in of.items()} for task, of in self.targets.items()
        }
        return Batch(**content)

    @property
    def token_places(self) -> Tensor:
        """[W] int64: 0, 1, ... inside its sequence."""
        return self._words[0]

    @property
    def token_slots(self) -> Tensor:
        """[W] int64: the slot of each word."""
        places, owners = self._words
        return self._slots[owners] + places

    @property
    def visual_slots(self) -> Tensor:
        """[V] int64: the slot of each visual token."""
        places, owners = self._shown
        return (self._slots + self.words)[owners] + places

    @property
    def visual_rows(self) -> Tensor:
        """[V] int64: the row of each visual token."""
        places, owners = self._shown
        rows = self.visual_starts[owners] + places
        rows[self.hidden] = self.hidden_rows
        return rows

    @cached_property
    def _words(self) -> tuple[Tensor, Tensor]:
        return _count(self.words, len(self.token_ids))

    @cached_property
    def _shown(self) -> tuple[Tensor, Tensor]:
        return _count(self.lengths - self.words, self.tokens - len(self.token_ids))

    @property
    def _slots(self) -> Tensor:
        """[S]: the first slot of each sequence."""
        return self.lengths.cumsum(0) - self.lengths


FIELDS = tuple(field.name for field in fields(Batch))
TENSORS = tuple(field.name for field in fields(Batch) if field.type is Tensor)
"""Names of the fields of a `Batch` that are tensors."""


def _count(lengths: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Lay runs of `lengths` [S] end to end, `total` in all: -> (place in its run, number of its run) of each, [total]."""
    owners = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=total)
    first = lengths.cumsum(0) - lengths
    return torch.arange(total, device=lengths.device) - first[owners], owners


_NONE = np.zeros(0, np.int64)


class Packer:
    """Collects sequences and targets, and packs them to a `Batch`.

    Args:
        features: shape of a visual source's features behind their first axis.
    """

    def __init__(self, *features: int) -> None:
        self._features = features
        self._ids: list[NDArray[np.int64]] = []
        self._words: list[NDArray[np.int64]] = []
        """Of each sequence, and so the two after it."""
        self._shown: list[NDArray[np.int64]] = []
        """Tokens of the picture that it shows; 0 where it shows none."""
        self._first_rows: list[NDArray[np.int64]] = []
        """First row of that picture among those of all held."""
        self._hidden: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
        """Number of a sequence, tokens of its picture that are hidden, and the rows that they show instead."""
        self._sequences = 0
        self._slots = 0
        self._held: list[Picture] = []
        """Pictures, each once."""
        self._row_of: dict[int, int] = {}
        """By the identity of a picture's features, its first row among those of all held."""
        self._rows = 0
        """Of all held."""
        self._targets: dict[str, dict[str, list[NDArray[np.generic]]]] = {}
        self.names: list[str] = []
        self.counts: dict[str, int] = {}

    def add(self, sequence: Sequence) -> tuple[int, int]:
        """Append a sequence; return its number and its first slot."""
        token_ids, picture = sequence
        pictures = [] if picture is None else [picture]
        numbers, first_slots = self.add_many(token_ids, np.array([len(token_ids)]), pictures)
        return numbers[0], int(first_slots[0])

    def add_many(
        self, token_ids: NDArray[np.int64], lengths: NDArray[np.int64], pictures: Sequences[Picture] = ()
    ) -> tuple[range, NDArray[np.int64]]:
        """Append sequences: words end to end in `token_ids` [W], of `lengths` [N], and behind them a picture each, if any.

        -> (their numbers, the first slot of each [N]).
        """
        shown, first_rows = self._hold(pictures) if pictures else np.zeros((2, len(lengths)), np.int64)
        ends = (lengths + shown).cumsum() + self._slots
        first_slots = ends - lengths - shown
        numbers = range(self._sequences, self._sequences + len(lengths))
        self._ids.append(token_ids)
        self._words.append(lengths)
        self._shown.append(shown)
        self._first_rows.append(first_rows)
        self._sequences = numbers.stop
        self._slots = int(ends[-1]) if len(ends) else self._slots
        return numbers, first_slots

    def hide(self, sequence: int, places: NDArray[np.int64], picture: Picture) -> None:
        """Hide the tokens at `places` of `picture`, which `sequence` shows: there it shows blanks."""
        if len(places):
            blank, numbers = picture.blank(places)
            first_row = self._hold([blank])[1, 0]
            self._hidden.append((sequence, places, first_row + numbers))

    def _hold(self, pictures: Sequences[Picture]) -> NDArray[np.int64]:
        """Keep those that are not yet held: -> tokens and first row of each, [2, N]."""
        found = []
        for picture in pictures:
            tokens, owner = picture.tokens, id(picture.features)
            if owner not in self._row_of:
                self._row_of[owner] = self._rows
                self._held.append(picture)
                self._rows += tokens
            found.append((tokens, self._row_of[owner]))
        return np.array(found).T

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
        words, shown = np.concatenate(self._words), np.concatenate(self._shown)
        lengths, firsts = words + shown, shown.cumsum() - shown
        hidden = [firsts[sequence] + places for sequence, places, _ in self._hidden]
        boxes = [picture.boxes for picture in self._held if picture.boxes is not None]
        return Batch(
            token_ids=torch.from_numpy(np.concatenate(self._ids)),
            words=torch.from_numpy(words),
            lengths=torch.from_numpy(lengths),
            visual_starts=torch.from_numpy(np.concatenate(self._first_rows)),
            visual_features=_features([picture.features for picture in self._held], self._features, canvas),
            visual_boxes=_stack(boxes, (4,)),
            hidden=torch.from_numpy(np.concatenate([_NONE, *hidden])),
            hidden_rows=torch.from_numpy(np.concatenate([_NONE, *(rows for _, _, rows in self._hidden)])),
            targets={
                task: {name: _join(parts) for name, parts in arrays.items()} for task, arrays in self._targets.items()
            },
            tokens=self._slots,
            embedded_rows=self._rows,
            longest=int(lengths.max()),
            samples=samples,
            names=self.names,
            counts=self.counts,
        )


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
    """[N, ...] each."""
    whole: Tensor | None
    """All of them end to end, and some room behind them, where that memory may be handed on."""


def _features(arrays: Sequences[NDArray[Any]], shape: tuple[int, ...], canvas: Painted | None) -> Tensor:
    """Lay features [N, *shape] end to end. Those that already lie so on the canvas stay there, and what follows joins them."""
    if canvas is None or canvas.whole is None or not all(map(operator.is_, arrays, canvas.rooms)):
        return _stack(arrays, shape)
    count, total = len(canvas.rooms), sum(map(len, arrays))
    if len(arrays) < count or total > len(canvas.whole):
        return _stack(arrays, shape)
    if len(arrays) > count:
        others = arrays[count:]
        np.concatenate(others, out=canvas.whole[total - sum(map(len, others)) : total].numpy())
    return canvas.whole[:total]


def _join(parts: Sequences[NDArray[Any]]) -> Tensor:
    """Lay parts of a target end to end; rows of many numbers, such as masked patches, go straight to where they are packed."""
    return torch.from_numpy(np.concatenate(parts)) if parts[0].ndim == 1 else _stack(parts, parts[0].shape[1:])


def _stack(arrays: Sequences[NDArray[Any]], shape: tuple[int, ...]) -> Tensor:
    """Lay arrays [N, *shape] end to end."""
    if not arrays:
        return torch.zeros(0, *shape)
    whole_shape = (sum(len(array) for array in arrays), *shape)
    kind = torch.uint8 if arrays[0].dtype == np.uint8 else torch.float32
    whole = find_room(whole_shape, kind)
    whole = torch.empty(whole_shape, dtype=kind) if whole is None else whole
    np.concatenate(arrays, out=whole.numpy())
    return whole
