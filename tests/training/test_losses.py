import math

import pytest
import torch

from m3p.training.losses import StepLosses

CPU = torch.device("cpu")


def turn(losses: StepLosses, objective: str, mean: float, terms: int = 2, weight: float = 1.0) -> None:
    """Add a turn whose only task has `terms` terms of this mean."""
    losses.begin(objective, {"x": weight}, {"x": terms}, CPU).add("x", torch.tensor(mean * terms))


def test_objectives_of_equal_turns_add_up() -> None:
    losses = StepLosses()
    turn(losses, "a", 3.0)
    turn(losses, "b", 5.0, weight=2.0)
    assert losses.figures() == ({"a/x": 3.0, "b/x": 5.0}, 3.0 + 2 * 5.0)


def test_an_objective_counts_by_its_turns_as_in_what_is_minimised() -> None:
    losses = StepLosses()
    for objective, mean in (("a", 3.0), ("b", 5.0), ("c", 7.0), ("c", 9.0)):
        turn(losses, objective, mean)
    figures = losses.figures()
    assert figures.tasks == {"a/x": 3.0, "b/x": 5.0, "c/x": 8.0}
    assert figures.loss == pytest.approx(3 * (3 + 5 + 7 + 9) / 4)


def test_turns_count_alike_whatever_their_terms() -> None:
    losses = StepLosses()
    turn(losses, "a", 1.0, terms=9)
    turn(losses, "a", 4.0, terms=1)
    figures = losses.figures()
    assert figures.loss == pytest.approx((1 + 4) / 2)
    assert figures.tasks["a/x"] == pytest.approx(13 / 10)


def test_a_task_that_met_no_term_has_no_loss() -> None:
    losses = StepLosses()
    turn(losses, "a", 0.0, terms=0)
    turn(losses, "b", 0.0)
    figures = losses.figures()
    assert figures.loss == 0
    assert losses.met(figures.tasks) == {"b/x": 0.0}


def test_a_step_of_nothing_has_no_figures() -> None:
    assert StepLosses().figures() == ({}, 0.0)


def test_the_device_accepts_what_the_guard_does() -> None:
    losses = StepLosses()
    for objective, mean in (("a", 3.3), ("b", 5.7), ("c", 7.1), ("c", 9.9)):
        turn(losses, objective, mean, terms=7, weight=0.3)
    exact = losses.figures().loss
    assert losses.accepted(None)
    assert losses.accepted(exact)
    assert not losses.accepted(math.nextafter(exact, 0.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_device_refuses_a_sum_that_is_not_finite(value: float) -> None:
    losses = StepLosses()
    turn(losses, "a", 1.0)
    turn(losses, "b", value)
    assert not losses.accepted(None)
    assert not losses.accepted(1e9)
