"""Symmetric cross-entropy over all pairs of texts and pictures, without a tensor of [pairs, pairs] where there are many.

32,768 pairs have a thousand million logits: 4 GiB each time they stand somewhere. Here the logits of some texts with all pictures
exist at once, are computed twice (for the sums of rows and columns, then for loss and gradient), and dropped. Nothing is left
out or rounded away, so loss and gradient are those of the plain form.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m3p.kernels.first_order import first_order

MAX_CELLS = 1 << 24
"""Logits that exist at once, 64 MiB of float32: all of them up to 4,096 pairs, for which the plain form is taken."""


def pair_cross_entropy(
    text: Tensor, image: Tensor, captions: Tensor, pictures: Tensor, max_cells: int = MAX_CELLS
) -> Tensor:
    """Return the mean of the cross-entropies of texts against pictures and of pictures against texts, summed over pairs.

    The right answers of a row are equally likely: pairs whose captions, or whose pictures, have one name.

    Args:
        text: [B, size] float32, scaled by the inverse temperature.
        image: [B, size] float32.
        captions: [B] int64 names of the captions.
        pictures: [B] int64 names of the pictures, or [B, n] where they have several, of which one that is equal is enough.
        max_cells: logits that may exist at once.
    """
    if len(text) ** 2 <= max_cells:
        return pair_cross_entropy_reference(text, image, captions, pictures)
    apply = _InChunks.apply
    return apply(text, image, captions, pictures, max(1, max_cells // len(text)))  # type: ignore[no-untyped-call]


def pair_cross_entropy_reference(text: Tensor, image: Tensor, captions: Tensor, pictures: Tensor) -> Tensor:
    """The same in its plain form, which keeps all logits."""
    logits = text @ image.T
    right = right_pairs(captions, pictures, slice(None))
    return (_soft_cross_entropy(logits, right) + _soft_cross_entropy(logits.T, right.T)) / 2


def _soft_cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Cross-entropy with the right answers of a row equally likely, summed over rows."""
    wanted = right.float() / right.sum(1, keepdim=True)
    return -(wanted * F.log_softmax(logits, 1)).sum()


def right_pairs(captions: Tensor, pictures: Tensor, rows: slice | Tensor) -> Tensor:
    """Say which pictures are right for the texts `rows` (numbers of pairs, or a slice of them): bool [rows, B]."""
    right = captions[rows, None] == captions
    for names in pictures.reshape(len(pictures), -1).unbind(1):
        right |= names[rows, None] == names
    return right


class _InChunks(torch.autograd.Function):
    """Loss and gradient together, since the gradient needs the same logits."""

    @staticmethod
    def forward(ctx: Any, text: Tensor, image: Tensor, captions: Tensor, pictures: Tensor, rows: int) -> Tensor:
        of_rows, of_columns, answers = _sums(text, image, captions, pictures, rows)
        loss = (of_rows.sum() + of_columns.sum()) / 2
        to_text, to_image = torch.empty_like(text), torch.zeros_like(image)
        for part in _parts(len(text), rows):
            logits = text[part] @ image.T
            # Each right answer is wanted by its row, and by its column.
            wanted = right_pairs(captions, pictures, part) * (1 / answers[part, None] + 1 / answers)
            loss -= (wanted * logits).sum() / 2
            found = (logits - of_rows[part, None]).exp_() + (logits - of_columns).exp_()
            gradient = found.sub_(wanted).div_(2)
            to_text[part] = gradient @ image
            to_image += gradient.T @ text[part]
        ctx.save_for_backward(to_text, to_image)
        return loss

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        to_text, to_image = ctx.saved_tensors
        return gradient * to_text, gradient * to_image, None, None, None


def _sums(text: Tensor, image: Tensor, captions: Tensor, pictures: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each text, and for each picture, the log of the sum of its exponentials [B], and the right answers [B]."""
    of_rows, answers = torch.empty_like(text[:, 0]), torch.empty_like(text[:, 0])
    of_columns = torch.full_like(of_rows, -torch.inf)
    for part in _parts(len(text), rows):
        logits = text[part] @ image.T
        of_rows[part] = logits.logsumexp(1)
        of_columns = torch.logaddexp(of_columns, logits.logsumexp(0))
        # What is right is symmetric: a picture has as many right texts as the text of its own pair has right pictures.
        answers[part] = right_pairs(captions, pictures, part).sum(1, dtype=answers.dtype)
    return of_rows, of_columns, answers


def _parts(count: int, rows: int) -> Iterator[slice]:
    """Yield the rows of each chunk."""
    yield from (slice(first, first + rows) for first in range(0, count, rows))
