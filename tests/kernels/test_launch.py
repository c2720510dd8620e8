"""Kernels start on the GPU that holds their tensors, whichever is the current one."""

import ast
from pathlib import Path

import pytest
import torch

from tests.launch import ROOT

FILES = sorted((ROOT / "trainer/m3p/kernels").glob("*_triton.py"))


def launches(tree: ast.AST, inside: bool = False) -> list[bool]:
    """Say of each start of a kernel, `kernel[grid](...)`, whether it stands in a `with on_gpu_of(...)`."""
    found = []
    for node in ast.iter_child_nodes(tree):
        guards = isinstance(node, ast.With) and any("on_gpu_of(" in ast.unparse(item) for item in node.items)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            found.append(inside)
        found += launches(node, inside or guards)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_kernel_is_started_on_the_gpu_of_its_tensors(path: Path) -> None:
    found = launches(ast.parse(path.read_text()))
    assert found
    assert all(found)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_kernel_runs_on_another_gpu_than_the_current_one() -> None:
    from m3p.kernels.bias_gelu import bias_gelu

    x, bias = torch.randn(7, 50, device="cuda:1"), torch.randn(50, device="cuda:1")
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(bias_gelu(x, bias, "triton"), bias_gelu(x, bias))
