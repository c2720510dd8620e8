"""The calls of flash-attn-4 and quack-kernels compile for GPUs that are not here, where the packages are installed.

Both make machine code from tensors that hold no numbers, for the GPU that environment variables name. Each run is a process of
its own.
"""

import os
import subprocess
import sys

import pytest

from m3p.kernels.obstacles import FA4, QUACK, _package
from tests.launch import ROOT

BEGIN = """
import contextlib
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
import cutlass.utils
# What they ask the driver of a GPU, and torch's way to another GPU, which its build for CPUs does not have.
cutlass.utils.HardwareInfo.__init__ = lambda self, *others: None
cutlass.utils.HardwareInfo.get_max_active_clusters = lambda self, cluster_size, *others: 132 // cluster_size
cutlass.utils.HardwareInfo.get_device_multiprocessor_count = lambda self: 132
from m3p.kernels import launch
launch.on_gpu_of = lambda tensor: contextlib.nullcontext()
kind = {"dtype": torch.bfloat16, "device": "cuda"}
"""

ATTENTION = """
from flash_attn.cute import interface
from m3p.model.attention import Layout, attend
seen, forward = {}, interface._flash_attn_fwd
def note(*tensors, **more):
    seen.update(tensors=tensors, more=more)
    return forward(*tensors, **more)
note.compile_cache = forward.compile_cache
interface._flash_attn_fwd = note
with FakeTensorMode(), torch.no_grad():
    qkv = torch.empty(139520, 3, 12, 64, **kind)  # a pair turn of 512 samples
    layout = Layout(torch.empty(2048, dtype=torch.int64, device="cuda"), 140, "fa4")
    out = attend(qkv, layout, 0.0)
    assert out.shape == (139520, 12, 64) and out.dtype == torch.bfloat16, out
    # Forward and backward as in training. torch's build for CPUs differentiates no tensors of a GPU, even without numbers.
    out, lse, *_ = forward(*seen["tensors"], **{**seen["more"], "return_lse": True})
    bounds = {name: seen["more"][name] for name in ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")}
    gradients = interface._flash_attn_bwd(*seen["tensors"], out, torch.empty_like(out), lse, **bounds)
    assert [one.shape for one in gradients] == 3 * [(139520, 12, 64)], gradients
"""

FEED_FORWARD = """
import types
from quack.gemm_runtime import host
host.launch_gemm = lambda *others: None  # what was compiled is not started
from m3p.kernels.feed_forward_quack import _FeedForward, feed_forward_quack
with FakeTensorMode(), torch.no_grad():
    given = [torch.empty(shape, **kind) for shape in ((139520, 768), (3072, 768), (3072,), (768, 3072), (768,))]
    assert feed_forward_quack(*given).shape == (139520, 768)
    context = types.SimpleNamespace(needs_input_grad=5 * [True])
    context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
    out = _FeedForward.forward(context, *given)
    gradients = _FeedForward.backward(context, torch.empty_like(out))
    assert [one.shape for one in gradients] == [one.shape for one in given], gradients
    assert {one.dtype for one in gradients} == {torch.bfloat16}
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [90, 100])
@pytest.mark.parametrize(("package", "script"), [(FA4, ATTENTION), (QUACK, FEED_FORWARD)])
def test_the_calls_compile(package: tuple[str, str], script: str, capability: int) -> None:
    if reason := _package(*package):
        pytest.skip(reason)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'trainer'}{os.pathsep}{ROOT}",
        "FLASH_ATTENTION_NUM_SMS": "132",
    }
    environment |= {"FLASH_ATTENTION_ARCH": f"sm_{capability}", "QUACK_ARCH": f"sm_{capability}"}
    environment |= {"CUTE_DSL_ARCH": f"sm_{capability}a"}
    environment |= {
        "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "0",
        "QUACK_CACHE_ENABLED": "0",
    }  # of earlier compilations
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
