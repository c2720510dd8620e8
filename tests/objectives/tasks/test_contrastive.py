import math

import torch
import torch.nn.functional as F

from m3p.objectives.tasks.contrastive import Contrastive


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
