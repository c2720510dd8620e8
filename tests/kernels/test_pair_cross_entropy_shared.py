import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m3p.kernels.pair_cross_entropy import pair_cross_entropy, pair_cross_entropy_reference
from m3p.kernels.pair_cross_entropy_shared import shared_pair_cross_entropy
from tests.kernels.test_pair_cross_entropy import Largest, pairs
from tests.training.test_hard_negatives import Meeting

Turn = tuple[Tensor, Tensor, Tensor, Tensor]
"""Texts, pictures, and names of both."""
Found = tuple[Tensor, Tensor, Tensor]
"""A loss, the gradient of texts, and that of pictures."""


def shared(turn: Turn, owners: list[int], ranks: int, max_cells: int) -> tuple[Found, list[Tensor]]:
    """Compute a turn on threads that stand for ranks: -> loss and whole gradients, and the loss on each rank."""
    text, image, captions, pictures = turn
    meeting, losses = Meeting(ranks), [torch.tensor(0.0)] * ranks
    to_text, to_image = torch.full_like(text, torch.nan), torch.full_like(image, torch.nan)

    def work(rank: int) -> None:
        own = (torch.tensor(owners) == rank).nonzero().flatten()
        losses[rank], to_text[own], to_image[own] = shared_pair_cross_entropy(
            text, image, captions, pictures, own, meeting.sum, max_cells
        )

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return (losses[0], to_text, to_image), losses


def alone(turn: Turn, max_cells: int | None = None) -> Found:
    """Compute a turn as one rank does: in chunks, or in the plain form without `max_cells`."""
    text, image, captions, pictures = turn
    text, image = text.clone().requires_grad_(), image.clone().requires_grad_()
    if max_cells is None:
        loss = pair_cross_entropy_reference(text, image, captions, pictures)
    else:
        loss = pair_cross_entropy(text, image, captions, pictures, max_cells)
    to_text, to_image = torch.autograd.grad(loss, (text, image))
    return loss.detach(), to_text, to_image


def error(found: Tensor, wanted: Tensor) -> float:
    """Return the size of the difference as a share of what is wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@settings(max_examples=25)
@given(
    owners=st.integers(1, 4).flatmap(lambda ranks: st.lists(st.integers(0, ranks - 1), min_size=2, max_size=30)),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
    max_cells=st.integers(1, 500),
)
def test_any_shares_give_loss_and_gradient_of_the_plain_form(owners: list[int], scale: float, max_cells: int) -> None:
    """Ranks may have no pair at all, and several pairs one caption or one picture."""
    turn = pairs(len(owners), 6, scale)
    found, losses = shared(turn, owners, 4, max_cells)
    for mine, plain in zip(found, alone(turn), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-6, atol=1e-6 * scale)  # the plain form's shares are float32
    assert all(torch.equal(loss, losses[0]) for loss in losses)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_float32_is_that_of_one_rank(ranks: int) -> None:
    text, image, captions, pictures = pairs(211, 32, 0.5)
    turn = (text.float(), image.float(), captions, torch.stack([pictures, captions // 3], 1))
    owners = [number % 7 % ranks for number in range(211)]
    found, _ = shared(turn, owners, ranks, 2000)
    for mine, one in zip(found, alone(turn, 2000), strict=True):
        assert mine.dtype == torch.float32
        assert error(mine, one) < 1e-6


def test_what_is_made_and_sent_is_bounded() -> None:
    """No tensor has a cell for each two pairs, and four numbers of a pair are exchanged, once."""
    turn, sent = pairs(300, 4, 1.0), list[int]()

    def all_sum(tensor: Tensor) -> Tensor:
        sent.append(tensor.numel())
        return tensor

    with Largest() as made:  # type: ignore[no-untyped-call]
        shared_pair_cross_entropy(*turn, torch.arange(300), all_sum, max_cells=3000)
    assert made.elements <= 3000
    assert sent == [4 * 300]
