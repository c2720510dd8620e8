"""Triton without a GPU: kernels in the interpreter (a process of its own, since a variable decides at import), and compiled."""

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.launch import ROOT

COMPILED = [(80, "bf16"), (90, "bf16"), (90, "fp16"), (90, "fp32"), (100, "bf16"), (942, "bf16")]
"""Ampere, Hopper, Blackwell and AMD's MI300, and formats of numbers: all formats for one of them."""
AMD = 942


def interpret(script: str) -> None:
    """Run `script` with Triton's interpreter; it raises where kernel and reference differ."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT / 'trainer'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def compile_kernel(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], capability: int, **options: int
) -> bytes:
    """Return the machine code of `kernel` for a GPU of compute `capability`, or for AMD's; no GPU is needed.

    `options` are Triton's own: num_warps, num_stages.
    """
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    amd = capability == AMD
    target = GPUTarget("hip", f"gfx{AMD}", 64) if amd else GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options)
    code: bytes = compiled.asm["hsaco" if amd else "cubin"]
    return code
