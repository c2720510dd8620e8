import math

import pytest
import torch
import torch.nn.functional as F

from m3p.objectives.tasks import contrastive
from m3p.objectives.tasks.contrastive import Contrastive, ContrastiveHead
from m3p.objectives.tasks.task import Targets


def literal(text: torch.Tensor, image: torch.Tensor, right: list[list[bool]]) -> float:
    """The loss as one would say it: for each text and each picture, the right ones equally likely."""
    total = 0.0
    for logits, answers in (
        (text @ image.T, right),
        ((text @ image.T).T, [list(row) for row in zip(*right, strict=True)]),
    ):
        for row, wanted in zip(logits.tolist(), answers, strict=True):
            norm = math.log(sum(math.exp(value) for value in row))
            chosen = [value - norm for value, good in zip(row, wanted, strict=True) if good]
            total -= sum(chosen) / len(chosen) / 2
    return total


def named(captions: torch.Tensor, pictures: torch.Tensor) -> Targets:
    """Return the targets of pairs whose pictures have one name each, whatever it is called by."""
    return {"captions": captions, "pictures": pictures, "contents": pictures, "published": pictures}


@pytest.mark.parametrize("name", ["pictures", "contents", "published"])
def test_pictures_that_agree_in_one_name_are_right_for_each_other(name: str) -> None:
    torch.manual_seed(0)
    text, image = F.normalize(torch.randn(2, 3, 8), dim=-1)
    targets = named(torch.arange(3), torch.arange(3)) | {name: torch.tensor([7, 8, 7])}
    right = [[True, False, True], [False, True, False], [True, False, True]]
    found = Contrastive().loss(torch.cat([text * 5, image]), targets)
    assert math.isclose(float(found), literal(text * 5, image, right), rel_tol=1e-5)


def test_identical_captions_and_pictures_of_one_concept_count_as_right() -> None:
    torch.manual_seed(0)
    text, image = F.normalize(torch.randn(2, 4, 8), dim=-1)
    targets = named(torch.tensor([1, 2, 1, 3]), torch.tensor([5, 6, 7, 6]))
    right = [
        [True, False, True, False],
        [False, True, False, True],
        [True, False, True, False],
        [False, True, False, True],
    ]
    found = Contrastive().loss(torch.cat([text * 5, image]), targets)
    assert math.isclose(float(found), literal(text * 5, image, right), rel_tol=1e-5)


def test_names_are_laid_in_the_rows_of_the_turn() -> None:
    part = {"rows": torch.tensor([3, 1]), **named(torch.tensor([30, 10]), torch.tensor([31, 11]))}
    whole = Contrastive().turn_targets(5, [part])
    assert whole["captions"].tolist() == [0, 10, 0, 30, 0]
    assert whole["pictures"].tolist() == [0, 11, 0, 31, 0]


def test_the_scale_used_never_exceeds_a_hundred() -> None:
    head = ContrastiveHead(6, 4, "first", 0.1, learn_temperature=True)
    with torch.no_grad():
        head.log_scale.fill_(math.log(5000.0))
    text, _ = head(torch.randn(4, 6)).chunk(2)
    torch.testing.assert_close(text.norm(dim=1), torch.full((2,), 100.0))
    text.sum().backward()
    assert head.log_scale.grad is not None
    assert float(head.log_scale.grad) == pytest.approx(float(text.sum().detach()), rel=1e-4), "so that it can come back"


def fan(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Six vectors close to each other: to tell them apart the scale would have to rise far above a hundred."""
    angles = 0.1 * torch.arange(6)
    return torch.stack([angles.cos(), angles.sin()], 1).to(dtype)


def trained(steps: int, head: ContrastiveHead, optimizer: torch.optim.Optimizer, matching: bool) -> float:
    """Train the temperature alone, on pairs that all match or of which none does; return the parameter."""
    one = fan(head.log_scale.dtype)
    rows = torch.cat([one, one if matching else one.roll(3, 0)])
    targets = named(torch.arange(6), torch.arange(6))
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(Contrastive().loss(head(rows), targets))
        optimizer.step()
    return float(head.log_scale.detach())


def identity_head() -> ContrastiveHead:
    head = ContrastiveHead(2, 2, "first", 0.02, learn_temperature=True)
    head.initialise()
    return head


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_temperature_does_not_wind_up_behind_its_ceiling(dtype: torch.dtype) -> None:
    """Pushed up, it stops as soon as the optimizer's momentum is used up; it goes down as soon as it is pushed down."""
    head, rate = identity_head().to(dtype), 0.02
    optimizer = torch.optim.AdamW([head.log_scale], lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    assert math.log(100) - 0.04 <= trained(300, head, optimizer, matching=True) <= math.log(100) + 12 * rate
    assert trained(40, head, optimizer, matching=False) < math.log(100) - 0.2


def test_holding_the_scale_changes_no_other_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.cat([fan(), fan() + 0.01])
    targets = named(torch.arange(6), torch.arange(6))
    gradients = []
    for hold in (False, True):
        head = identity_head()
        with torch.no_grad():
            head.log_scale.fill_(math.log(100.0))
        if not hold:
            monkeypatch.setattr(contrastive, "_hold_scale", lambda text: text)
        torch.autograd.backward(Contrastive().loss(head(rows), targets))
        monkeypatch.undo()
        gradients.append([parameter.grad for parameter in (head.text.weight, head.image.weight, head.log_scale)])
    (text, image, rising), (held_text, held_image, held) = gradients
    assert rising is not None
    assert held is not None
    torch.testing.assert_close(held_text, text, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(held_image, image, rtol=0, atol=0)
    assert float(rising) < -1
    assert abs(float(held)) < 1e-4
