"""Gradients that autograd cannot differentiate again say so, where they would leave a part out of second derivatives."""

import ast
from pathlib import Path

import pytest
import torch

from m3p.kernels.cross_entropy import linear_cross_entropy
from m3p.kernels.first_order import first_order
from m3p.kernels.pair_cross_entropy import pair_cross_entropy
from tests.launch import ROOT

FILES = sorted((ROOT / "trainer/m3p/kernels").glob("*.py"))


def backwards(path: Path) -> list[ast.FunctionDef]:
    """Return the backward passes of the autograd functions in a file."""
    classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    functions = [one for one in classes if any(ast.unparse(base).endswith("autograd.Function") for base in one.bases)]
    return [one for of in functions for one in of.body if isinstance(one, ast.FunctionDef) and one.name == "backward"]


def test_every_backward_of_a_kernel_is_of_first_order() -> None:
    found = [one for path in FILES for one in backwards(path)]
    assert len(found) >= 5
    for one in found:
        assert first_order.__name__ in [ast.unparse(decorator) for decorator in one.decorator_list]


def test_second_derivatives_are_refused_beside_other_terms() -> None:
    torch.manual_seed(0)
    rows, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((4, 3), (5, 3), (5,)))
    names = torch.arange(4)
    for loss in (
        linear_cross_entropy(rows, weight, bias, torch.tensor([0, 1, 2, 3])),
        pair_cross_entropy(rows, rows.detach(), names, names, max_cells=8),
    ):
        both = loss + rows.pow(3).sum()
        with pytest.raises(RuntimeError, match="first ones alone"):
            torch.autograd.grad(both, rows, create_graph=True)
