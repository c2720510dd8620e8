"""Packing: sequences, their pictures and the targets of the tasks become one `Batch`."""

import operator
from collections.abc import Sequence as Sequences
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m3p.batch import Allocate, Batch, HardNegatives, Picture, Sequence, allocate_nothing
from m3p.data.loader.picture_buffer import PictureBuffer

_NONE = np.zeros(0, np.int64)
AS_THEY_ARE = {np.dtype(np.uint8): torch.uint8, np.dtype(np.float16): torch.float16}
"""Formats of features that are packed as they are: pixels, and stored features of half the bytes; others become float32."""


class Packer:
    """Collects sequences and targets, and packs them into a `Batch`.

    Args:
        features: shape of a visual source's features behind their first axis.
        allocate: gives the memory that pictures and wide targets are packed into, where it has some.
    """

    def __init__(self, *features: int, allocate: Allocate = allocate_nothing) -> None:
        self._features, self._allocate = features, allocate
        self._ids: list[NDArray[np.int64]] = []
        """Token ids of all sequences, in pieces that are laid end to end."""
        self._words: list[NDArray[np.int64]] = []
        """Number of words of each sequence, in pieces."""
        self._visual_tokens: list[NDArray[np.int64]] = []
        """Number of tokens of the picture that each sequence shows (0 where it shows none), in pieces."""
        self._first_rows: list[NDArray[np.int64]] = []
        """First row of that picture among the rows of all pictures (0 where there is none), in pieces."""
        self._hidden: list[tuple[int, NDArray[np.int64], NDArray[np.int64], int | None]] = []
        """Number of a sequence, tokens of its picture that show something else, the tokens that they show instead, and the first
        row of those: None for the rows that the embedder has for hidden tokens, behind those of all pictures."""
        self._sequences = 0
        self._slots = 0
        self._pictures: list[Picture] = []
        """The pictures of the batch, each once."""
        self._row_of: dict[int, int] = {}
        """First row of a picture among the rows of all pictures, by the identity (`id`) of its features."""
        self._rows = 0
        """Number of rows of all pictures in `_pictures`."""
        self._targets: dict[str, dict[str, list[NDArray[np.generic]]]] = {}
        self.names: list[str] = []
        self.counts: dict[str, int] = {}
        self.hard: HardNegatives | None = None

    def add(self, sequence: Sequence) -> tuple[int, int]:
        """Append a sequence; return its number and its first slot."""
        token_ids, picture = sequence
        pictures = [] if picture is None else [picture]
        numbers, first_slots = self.add_many(token_ids, np.array([len(token_ids)]), pictures)
        return numbers[0], int(first_slots[0])

    def add_many(
        self, token_ids: NDArray[np.int64], lengths: NDArray[np.int64], pictures: Sequences[Picture] = ()
    ) -> tuple[range, NDArray[np.int64]]:
        """Append N sequences: words end to end in `token_ids` [W], of `lengths` [N], each with its picture behind, if any.

        Returns the numbers of the sequences, and the first slot of each [N].
        """
        visual_tokens, first_rows = self._keep(pictures) if pictures else np.zeros((2, len(lengths)), np.int64)
        ends = (lengths + visual_tokens).cumsum() + self._slots
        first_slots = ends - lengths - visual_tokens
        numbers = range(self._sequences, self._sequences + len(lengths))
        self._ids.append(token_ids)
        self._words.append(lengths)
        self._visual_tokens.append(visual_tokens)
        self._first_rows.append(first_rows)
        self._sequences = numbers.stop
        self._slots = int(ends[-1]) if len(ends) else self._slots
        return numbers, first_slots

    def hide(self, sequence: int, places: NDArray[np.int64], picture: Picture) -> None:
        """Hide the tokens at `places` of `picture`, which `sequence` shows: it shows what `Picture.blank` says instead."""
        if len(places):
            blank = picture.blank(places)
            first = None if blank.picture is None else self.row_of(blank.picture)
            self._hidden.append((sequence, blank.places, blank.tokens, first))

    def row_of(self, picture: Picture) -> int:
        """Return the first row of a picture among the rows of all pictures; it is packed if it was not yet."""
        return int(self._keep([picture])[1, 0])

    def _keep(self, pictures: Sequences[Picture]) -> NDArray[np.int64]:
        """Keep the pictures that the batch has not yet; return tokens and first row of each, [2, N]."""
        found = []
        for picture in pictures:
            tokens, identity = picture.tokens, id(picture.features)
            if identity not in self._row_of:
                self._row_of[identity] = self._rows
                self._pictures.append(picture)
                self._rows += tokens
            found.append((tokens, self._row_of[identity]))
        return np.array(found).T

    def target(self, task: str, **arrays: NDArray[np.generic]) -> None:
        """Append rows to the tensors of `task`; all arrays of a call have the same first dimension."""
        lists = self._targets.setdefault(task, {name: [] for name in arrays})
        for name, array in arrays.items():
            lists[name].append(array)

    def count(self, name: str, number: int) -> None:
        """Add `number` to the monitor's counter `name`."""
        self.counts[name] = self.counts.get(name, 0) + number

    def finish(self, samples: int, buffer: PictureBuffer | None = None) -> Batch:
        """Pack everything. Without a sequence, a lone `<s>` keeps this rank in step with the others.

        Args:
            samples: number of samples of the data that the batch holds.
            buffer: where the pictures were decoded to: those that are packed in the order of its parts are not copied.
        """
        if not self._sequences:
            self.add(Sequence(np.zeros(1, np.int64)))
        words, visual_tokens = np.concatenate(self._words), np.concatenate(self._visual_tokens)
        lengths, firsts = words + visual_tokens, visual_tokens.cumsum() - visual_tokens
        hidden = [firsts[sequence] + places for sequence, places, _, _ in self._hidden]
        rows = [tokens + (self._rows if first is None else first) for _, _, tokens, first in self._hidden]
        boxes = [picture.boxes for picture in self._pictures if picture.boxes is not None]
        return Batch(
            token_ids=torch.from_numpy(np.concatenate(self._ids)),
            words=torch.from_numpy(words),
            lengths=torch.from_numpy(lengths),
            visual_starts=torch.from_numpy(np.concatenate(self._first_rows)),
            visual_features=self._join_features([picture.features for picture in self._pictures], buffer),
            visual_boxes=self._stack(boxes, (4,)),
            hidden=torch.from_numpy(np.concatenate([_NONE, *hidden])),
            hidden_rows=torch.from_numpy(np.concatenate([_NONE, *rows])),
            targets={
                task: {name: self._join(parts) for name, parts in arrays.items()}
                for task, arrays in self._targets.items()
            },
            tokens=self._slots,
            embedded_rows=self._rows,
            longest=int(lengths.max()),
            samples=samples,
            names=self.names,
            counts=self.counts,
            hard=self.hard,
        )

    def _join_features(self, arrays: Sequences[NDArray[Any]], buffer: PictureBuffer | None) -> Tensor:
        """Lay features [N, ...] end to end.

        If the first ones are the parts of `buffer`, all of them in order, they stay there and the others join them.
        """
        if buffer is None or buffer.whole is None or not all(map(operator.is_, arrays, buffer.parts)):
            return self._stack(arrays, self._features)
        count, total = len(buffer.parts), sum(map(len, arrays))
        if len(arrays) < count or total > len(buffer.whole):
            return self._stack(arrays, self._features)
        if len(arrays) > count:
            others = arrays[count:]
            np.concatenate(others, out=buffer.whole[total - sum(map(len, others)) : total].numpy())
        return buffer.whole[:total]

    def _join(self, parts: Sequences[NDArray[Any]]) -> Tensor:
        """Lay the parts of a target end to end; wide rows, such as masked patches, go into memory that `allocate` gives."""
        return torch.from_numpy(np.concatenate(parts)) if parts[0].ndim == 1 else self._stack(parts, parts[0].shape[1:])

    def _stack(self, arrays: Sequences[NDArray[Any]], shape: tuple[int, ...]) -> Tensor:
        """Lay arrays end to end, in memory that `allocate` gives, or else in fresh memory; `shape` is that of none."""
        if not arrays:
            return torch.zeros(0, *shape)
        whole_shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
        dtype = AS_THEY_ARE.get(arrays[0].dtype, torch.float32)
        whole = self._allocate(whole_shape, dtype)
        whole = torch.empty(whole_shape, dtype=dtype) if whole is None else whole
        np.concatenate(arrays, out=whole.numpy())
        return whole
