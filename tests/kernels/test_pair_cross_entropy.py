import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from m3p.kernels.pair_cross_entropy import pair_cross_entropy, pair_cross_entropy_reference


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the most elements that a tensor had which any operation made."""

    elements: int = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            self.elements = max(self.elements, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return made


def pairs(count: int, size: int, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Texts, pictures, and names of both: some are the same as others."""
    random = torch.Generator().manual_seed(count)
    text, image = torch.randn(2, count, size, generator=random, dtype=torch.float64).unbind()
    captions, pictures = torch.randint(0, 2 * count // 3, (2, count), generator=random).unbind()
    return text * scale, image, captions, pictures


@pytest.mark.parametrize("scale", [0.1, 30.0])
@pytest.mark.parametrize("max_cells", [1, 37, 37 * 5, 37 * 36])
def test_chunks_give_loss_and_gradient_of_the_plain_form(max_cells: int, scale: float) -> None:
    text, image, captions, pictures = pairs(37, 6, scale)
    found, wanted = ([text.clone().requires_grad_(), image.clone().requires_grad_()] for _ in range(2))
    mine = pair_cross_entropy(found[0], found[1], captions, pictures, max_cells)
    plain = pair_cross_entropy_reference(wanted[0], wanted[1], captions, pictures)
    (mine * 3).backward()  # type: ignore[no-untyped-call]
    (plain * 3).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(mine, plain, rtol=1e-6, atol=0)  # its sum of wanted answers is float32
    for one, other in zip(found, wanted, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6 * scale)


def test_no_tensor_has_a_cell_for_each_two_pairs() -> None:
    text, image, captions, pictures = pairs(300, 4, 1.0)
    with Largest() as plain:  # type: ignore[no-untyped-call]
        pair_cross_entropy_reference(text, image, captions, pictures)
    with Largest() as chunked:  # type: ignore[no-untyped-call]
        pair_cross_entropy(text.requires_grad_(), image, captions, pictures, max_cells=3000).backward()  # type: ignore[no-untyped-call]
    assert plain.elements == 300 * 300
    assert chunked.elements <= 3000


def test_pictures_with_several_names_are_one_where_any_is_equal() -> None:
    text, image, captions, pictures = pairs(20, 4, 1.0)
    others = torch.arange(20) // 2
    several = torch.stack([pictures, others], 1)
    right = (pictures[:, None] == pictures) | (others[:, None] == others)
    logits, wanted = text @ image.T, (captions[:, None] == captions) | right
    shares = wanted / wanted.sum(1, keepdim=True)
    plain = -(shares * logits.log_softmax(1) + (shares * logits.T.log_softmax(1))).sum() / 2
    torch.testing.assert_close(pair_cross_entropy_reference(text, image, captions, several), plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(pair_cross_entropy(text, image, captions, several, 60), plain, rtol=1e-6, atol=0)
