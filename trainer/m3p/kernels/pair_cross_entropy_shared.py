"""The cross-entropy of pair_cross_entropy.py, its work shared by ranks that all hold the features of all pairs.

A rank takes the texts of its own pairs against all pictures, and the pictures of its own pairs against all texts. Of B pairs on
R ranks that is B^2 / R cells twice over: 6 B^2 / R multiplications of vectors, where one rank alone makes 4 B^2.

What the ranks exchange is four numbers of each pair, 512 KiB at 32,768 pairs, once and on the device. Each text against
all pictures alone would take 4 B^2 / R multiplications, but gives the pictures' gradients as sums over ranks: 32 MiB more at a
width of 256. Such sums would also depend on the order in which ranks are added; a number beside zeros does not.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from m3p.kernels.pair_cross_entropy import MAX_CELLS, right_pairs

AllSum = Callable[[Tensor], Tensor]
"""Returns the sum of a tensor over all ranks; it may be made in place."""


def shared_pair_cross_entropy(
    text: Tensor,
    image: Tensor,
    captions: Tensor,
    pictures: Tensor,
    own: Tensor,
    all_sum: AllSum,
    max_cells: int = MAX_CELLS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of all pairs, the same on all ranks, and its gradients for the texts and the pictures of `own` pairs.

    Every rank calls it at the same point, also one without pairs. Arguments but `own` and `all_sum` are those of
    `pair_cross_entropy`, whole on every rank.

    Args:
        own: [N] int64, the pairs of this rank; each of the B pairs is one rank's.
        all_sum: sums over ranks.

    Returns:
        The loss [], and two gradients [N, size], all float32.
    """
    parts = torch.split(own, max(1, max_cells // len(text)))
    sums = all_sum(_sums(text, image, captions, pictures, parts))
    of_text, of_image, answers, losses = sums.unbind()
    to_text, to_image = list[Tensor](), list[Tensor]()
    for part in parts:
        # Each right answer is wanted by its row, and by its column.
        wanted = right_pairs(captions, pictures, part) * (1 / answers[part, None] + 1 / answers)
        to_text.append(_gradient(text[part], image, of_text[part], of_image, wanted))
        to_image.append(_gradient(image[part], text, of_image[part], of_text, wanted))
    return losses.sum(), torch.cat(to_text), torch.cat(to_image)


def _sums(text: Tensor, image: Tensor, captions: Tensor, pictures: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    """Return [4, B] for the pairs `parts`, zero for all others.

    They are the logs of the sums of exponentials of a pair's text and of its picture, its right answers, and its loss.
    """
    sums = text.new_zeros(4, len(text))
    for part in parts:
        right = right_pairs(captions, pictures, part)
        # What is right is symmetric: a picture has as many right texts as the text of its own pair has right pictures.
        answers = right.sum(1, dtype=sums.dtype)
        of_text, loss_of_text = _row_losses(text[part], image, right, answers)
        of_image, loss_of_image = _row_losses(image[part], text, right, answers)
        sums[:, part] = torch.stack([of_text, of_image, answers, (loss_of_text + loss_of_image) / 2])
    return sums


def _row_losses(mine: Tensor, others: Tensor, right: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row of `mine` [n, size] the log of the sum of exponentials over `others` [B, size], and its loss."""
    logits = mine @ others.T
    of_rows = logits.logsumexp(1)
    return of_rows, of_rows - logits.mul_(right).sum(1) / answers


def _gradient(mine: Tensor, others: Tensor, of_mine: Tensor, of_others: Tensor, wanted: Tensor) -> Tensor:
    """Return the gradient of `mine` [n, size] from its own rows of the logits, and from its columns of the others' [B, size]."""
    logits = mine @ others.T
    found = (logits - of_mine[:, None]).exp_()
    found += logits.sub_(of_others).exp_()
    return found.sub_(wanted).div_(2) @ others
