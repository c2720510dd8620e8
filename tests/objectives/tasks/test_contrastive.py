import math

import pytest
import torch
import torch.nn.functional as F

from m3p.objectives.tasks.contrastive import Contrastive, ContrastiveHead


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


def test_identical_captions_and_pictures_of_one_concept_count_as_right() -> None:
    torch.manual_seed(0)
    text, image = F.normalize(torch.randn(2, 4, 8), dim=-1)
    targets = {"captions": torch.tensor([1, 2, 1, 3]), "pictures": torch.tensor([5, 6, 7, 6])}
    right = [
        [True, False, True, False],
        [False, True, False, True],
        [True, False, True, False],
        [False, True, False, True],
    ]
    found = Contrastive().loss(torch.cat([text * 5, image]), targets)
    assert math.isclose(float(found), literal(text * 5, image, right), rel_tol=1e-5)


def test_names_are_laid_in_the_rows_of_the_turn() -> None:
    part = {"rows": torch.tensor([3, 1]), "captions": torch.tensor([30, 10]), "pictures": torch.tensor([31, 11])}
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


def trained(
    steps: int, rows: torch.Tensor, head: ContrastiveHead, optimizer: torch.optim.Optimizer, matching: bool
) -> float:
    """Train the temperature alone, on pairs that all match or of which none does; return the parameter."""
    pairs = len(rows) // 2
    order = torch.arange(pairs) if matching else (torch.arange(pairs) + 1) % pairs
    for _ in range(steps):
        optimizer.zero_grad()
        text, image = head(rows).chunk(2)
        targets = {"captions": torch.arange(pairs), "pictures": torch.arange(pairs)}
        torch.autograd.backward(Contrastive().loss(torch.cat([text, image[order]]), targets))
        optimizer.step()
    return float(head.log_scale.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_temperature_does_not_wind_up_behind_its_ceiling(dtype: torch.dtype) -> None:
    """With the right pairs nearly found it would rise for ever; it stops there, and goes down as soon as it is pushed down."""
    torch.manual_seed(0)
    head = ContrastiveHead(8, 8, "first", 0.011, learn_temperature=True).to(dtype)
    head.initialise()
    one = torch.randn(6, 8)
    rows = torch.cat([one, one + 0.8 * torch.randn(6, 8)]).to(dtype)
    optimizer = torch.optim.AdamW([head.log_scale], lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
    risen = trained(1500, torch.cat([one, one]).to(dtype), head, optimizer, matching=True)
    assert math.log(100) - 0.04 <= risen <= math.log(100) + 0.1
    fallen = trained(60, rows, head, optimizer, matching=False)
    assert fallen < math.log(100) - 0.1


def test_holding_the_scale_changes_no_other_gradient() -> None:
    torch.manual_seed(0)
    rows, targets = torch.randn(8, 6), {"captions": torch.arange(4), "pictures": torch.arange(4)}
    found = []
    for log_scale in (math.log(99.9), math.log(100.0)):
        head = ContrastiveHead(6, 6, "first", 0.1, learn_temperature=True)
        head.initialise()
        with torch.no_grad():
            head.log_scale.fill_(log_scale)
        scaled = 0.1 * rows + rows[torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])]
        torch.autograd.backward(Contrastive().loss(head(scaled), targets))
        assert head.text.weight.grad is not None
        assert head.log_scale.grad is not None
        found.append((head.text.weight.grad, float(head.log_scale.grad)))
    (below, rising), (held, still) = found
    torch.testing.assert_close(held, below, rtol=0.05, atol=0.05 * float(below.abs().max()))
    assert rising < 0
    assert abs(still) < 1e-4 * abs(rising) + 1e-6
