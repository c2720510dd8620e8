"""Kernels start on the GPU that holds their tensors, whichever is the current one."""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

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


def compiled_as(kernel: Any, given: dict[str, Any]) -> str:
    """Return what Triton would compile `kernel` for: formats of numbers, and what it takes for granted of `given`."""
    jit, compiler = import_module("triton.runtime.jit"), import_module("triton.compiler.compiler")
    backend = compiler.make_backend(import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32))
    bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
    return str(bind(*(given.get(name, given["other"]) for name in kernel.signature.parameters))[1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_changes_from_step_to_step_compiles_no_kernel_anew(path: Path) -> None:
    pytest.importorskip("triton")
    module = import_module(f"m3p.kernels.{path.stem}")
    kernels = [one for name, one in vars(module).items() if name.endswith("_kernel")]
    assert kernels
    given: dict[str, Any] = {"other": torch.zeros(64)}
    given |= dict.fromkeys(["width", "heads", "vocabulary", "stride", "threshold"], 768)
    given |= dict.fromkeys(["ROWS", "BLOCK", "SIZE"], 8) | dict.fromkeys(["BIASED", "DROP", "TWICE", "WEIGHTED"], True)
    given |= {"eps": 1e-5, "factor": 1.5}
    found = set()
    # One row, a multiple of 16 of them, and others; tensors that are parts of others, and begin anywhere in them.
    for count, first in ((1, 0), (16, 1), (17, 2), (1 << 20, 3)):
        given |= dict.fromkeys(["labels", "starts", "lengths"], torch.zeros(64, dtype=torch.int64)[first:])
        given |= {"rows": count, "factors": torch.zeros(64)[first:]}
        # Names of two things: in attention the slots of all sequences and a factor of scores, in norms two tensors.
        attends = "attention" in path.stem
        given |= {"total": count if attends else torch.zeros(64), "scale": 0.5 if attends else torch.zeros(64)[first:]}
        found |= {(one.__name__, compiled_as(one, given)) for one in kernels}
    assert len(found) == len(kernels)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_kernel_runs_on_another_gpu_than_the_current_one() -> None:
    from m3p.kernels.bias_gelu import bias_gelu

    x, bias = torch.randn(7, 50, device="cuda:1"), torch.randn(50, device="cuda:1")
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(bias_gelu(x, bias, "triton"), bias_gelu(x, bias))
