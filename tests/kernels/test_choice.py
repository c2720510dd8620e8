import sys
import sysconfig
import types
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from m3p.errors import UserError
from m3p.kernels import obstacles
from m3p.kernels.choice import CANDIDATES, KernelsConfig, automatic_attention, choose
from m3p.kernels.obstacles import FA4, QUACK, Situation, have_apex
from tests.kernels.triton_run import interpret
from tests.launch import ROOT

CPU = Situation("cpu", torch.float32)
GPU = Situation("cuda", torch.bfloat16, stage=1)


def names(situation: Situation, **wanted: str) -> dict[str, str]:
    chosen = choose(KernelsConfig.model_validate(wanted), situation)
    return {field: found.name for field, found in chosen.items()}


def install(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make `modules` look installed."""
    for name in modules:
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, origin="here")
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "triton")
    monkeypatch.setattr(obstacles, "_triton_builds", lambda: None)


def test_on_a_cpu_everything_is_plain_torch_and_says_why() -> None:
    plain = {
        "attention": "grouped",
        "word_head": "torch",
        "layer_norm": "torch",
        "gelu": "torch",
        "layers": "eager",
        "optimizer": "torch",
    }
    assert names(CPU) == plain
    line = str(choose(KernelsConfig(), CPU)["attention"])
    assert line.startswith("grouped: torch's scaled-dot-product attention")
    assert line.endswith("(not varlen: needs a GPU; not flash_attn: needs a GPU)")


@pytest.mark.usefixtures("triton")
def test_on_a_gpu_the_fused_ones_are_taken() -> None:
    fused = {
        "attention": "varlen",
        "word_head": "triton",
        "layer_norm": "torch",
        "gelu": "torch",
        "layers": "eager",
        "optimizer": "torch",
    }
    assert names(GPU) == fused


@pytest.mark.usefixtures("triton")
def test_layers_are_compiled_where_that_is_asked_for_and_can_be() -> None:
    assert names(GPU, layers="compiled")["layers"] == "compiled"
    with pytest.raises(UserError, match=r"kernels.layers = compiled: ZeRO 3 gathers .*; set it to auto or eager"):
        names(Situation("cuda", torch.bfloat16, stage=3), layers="compiled")
    with pytest.raises(UserError, match=r"kernels.layer_norm = triton: adds the bias of another module, which ZeRO 3"):
        names(Situation("cuda", torch.bfloat16, stage=3), layer_norm="triton")
    with pytest.raises(UserError, match=r"kernels.layer_norm = triton asks for others; set one of the two to auto"):
        names(GPU, layers="compiled", layer_norm="triton")
    with pytest.raises(
        UserError, match=r"makes its own GELU, and kernels.gelu = triton asks for others; set one of the"
    ):
        names(GPU, layers="compiled", gelu="triton")
    with pytest.raises(UserError, match=r"kernels.gelu = triton: adds the bias of another module, which ZeRO 3"):
        names(Situation("cuda", torch.bfloat16, stage=3), gelu="triton")
    assert names(GPU, layer_norm="triton", gelu="triton")["gelu"] == "triton"


def test_compiling_on_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obstacles, "which", lambda name: None)
    with pytest.raises(UserError, match=r"kernels.layers = compiled: needs a C\+\+ compiler"):
        names(CPU, layers="compiled")
    monkeypatch.setattr(obstacles, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert names(CPU, layers="compiled")["layers"] == "compiled"


@pytest.mark.usefixtures("triton")
def test_attention_falls_back_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found = choose(KernelsConfig(), Situation("cuda", torch.float32))["attention"]
    assert found.name == "grouped"
    assert "16-bit" in found.why
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))  # a V100
    found = choose(KernelsConfig(), Situation("cuda", torch.float16))["attention"]
    assert found.name == "grouped"
    assert "not varlen: needs a GPU of compute capability 8.0" in found.why
    with pytest.raises(
        UserError, match=r"kernels\.attention = varlen: needs a GPU of compute capability 8\.0 \(Ampere\)"
    ):
        names(Situation("cuda", torch.float16), attention="varlen")


def test_without_what_triton_builds_with_a_gpu_takes_plain_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(obstacles, "installed", lambda module: module == "triton")
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.setattr(obstacles, "which", lambda name: "/usr/bin/clang" if name == "clang" else None)
    assert choose(KernelsConfig(), GPU)["word_head"].name == "triton"
    monkeypatch.setattr(obstacles, "which", lambda name: None)
    found = choose(KernelsConfig(), GPU)["word_head"]
    assert (found.name, "there is no compiler" in found.why) == ("torch", True)
    for field in ("layers=compiled", "word_head=triton", "gelu=triton", "layer_norm=triton", "attention=triton"):
        with pytest.raises(UserError, match="there is no compiler for it"):
            choose(KernelsConfig.model_validate(dict([field.split("=")])), GPU)
    monkeypatch.setenv("CC", "cc")
    assert choose(KernelsConfig(), GPU)["word_head"].name == "triton"
    (tmp_path / "Python.h").unlink()
    assert "Python's headers are not in" in choose(KernelsConfig(), GPU)["word_head"].why


def test_flash_attn_is_taken_where_it_is_installed_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn", "triton")
    assert names(GPU, attention="flash_attn")["attention"] == "flash_attn"


@pytest.mark.usefixtures("triton")
def test_own_attention_is_taken_where_it_is_asked_for_and_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    in_float32 = Situation("cuda", torch.float32, stage=3)
    assert names(in_float32)["attention"] == "grouped"
    assert names(in_float32, attention="triton")["attention"] == names(GPU, attention="triton")["attention"] == "triton"
    refused = {
        Situation("cuda", torch.bfloat16, head_size=96): r"heads of 32, 64, 128 numbers, .* have 96 \(width / heads\)",
        Situation("cuda", torch.bfloat16, attention_dropout=0.1): r"model\.attention_dropout = 0\.1 \(0 is taken\)",
    }
    for situation, reason in refused.items():
        with pytest.raises(
            UserError, match=rf"kernels\.attention = triton: .*{reason}; set it to auto or varlen or grouped"
        ):
            names(situation, attention="triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UserError, match=r"kernels\.attention = triton: needs a GPU of compute capability 8\.0"):
        names(Situation("cuda", torch.float16), attention="triton")


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("attention", "varlen"),
        ("attention", "flash_attn"),
        ("attention", "triton"),
        ("attention", "fa4"),
        ("word_head", "triton"),
        ("layer_norm", "triton"),
        ("gelu", "triton"),
        ("gelu", "quack"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one_with_the_ways_out(field: str, name: str) -> None:
    plain = "grouped" if field == "attention" else "torch"
    message = rf"kernels\.{field} = {name}: needs a GPU; set it to auto or {plain}"
    with pytest.raises(UserError, match=message):
        names(CPU, **{field: name})


def test_every_refusal_is_named_at_once() -> None:
    with pytest.raises(UserError, match=r"(?s)kernels\.attention = varlen.*kernels\.word_head = triton"):
        names(CPU, attention="varlen", word_head="triton")


@pytest.mark.parametrize(
    ("situation", "wanted", "reason"),
    [
        (Situation("cuda", torch.bfloat16, stage=3), "apex", "ZeRO 3"),
        (Situation("cuda", torch.bfloat16, stage=2, offloaded=True), "deepspeed", "offloaded"),
        (Situation("cuda", torch.bfloat16, stage=0), "deepspeed", "ZeRO 0 in 16 bits"),
        (GPU, "apex", "NVIDIA's apex is not installed"),
    ],
)
def test_an_optimizer_that_would_go_wrong_is_refused(situation: Situation, wanted: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"kernels\.optimizer = {wanted}: .*{reason}"):
        names(situation, optimizer=wanted)


def test_heads_that_flash_attention_does_not_take_fall_back_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (20, 264):
        found = choose(KernelsConfig(), replace(GPU, head_size=size))["attention"]
        assert found.name == automatic_attention(torch.device("cuda"), torch.bfloat16, size) == "grouped"
        assert (
            f"not varlen: takes heads whose numbers are a multiple of 8, at most 256, and this encoder's have {size}"
            in found.why
        )
        with pytest.raises(
            UserError, match=rf"kernels\.attention = varlen: takes heads .* have {size} .*; set it to auto or"
        ):
            names(replace(GPU, head_size=size), attention="varlen")
    for size in (8, 64, 256):
        assert automatic_attention(torch.device("cuda"), torch.bfloat16, size) == "varlen"
    install(monkeypatch, "flash_attn")
    assert names(replace(GPU, head_size=20), attention="flash_attn")["attention"] == "flash_attn"  # it pads them itself
    with pytest.raises(
        UserError, match=r"kernels\.attention = flash_attn: takes heads of at most 256 numbers, .* have 264"
    ):
        names(replace(GPU, head_size=264), attention="flash_attn")


def test_flash_attention_4_alone_is_not_taken_for_flash_attn_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "flash_attn/cute").mkdir(parents=True)
    (tmp_path / "flash_attn/cute/__init__.py").write_text("raise OSError('no driver')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"kernels\.attention = flash_attn: flash-attn is not installed"):
        names(GPU, attention="flash_attn")
    assert names(GPU)["attention"] == "varlen"
    assert "flash_attn.cute" not in sys.modules


def have(monkeypatch: pytest.MonkeyPatch, *packages: tuple[str, str], capability: tuple[int, int] = (9, 0)) -> None:
    """Make a GPU, and packages of PyPI with their versions, look as if they were there."""
    versions = dict(packages)

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(obstacles, "version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)


@pytest.mark.parametrize(("field", "name", "package"), [("attention", "fa4", FA4), ("gelu", "quack", QUACK)])
def test_optional_packages_are_taken_where_they_are_asked_for_and_can_run(
    field: str, name: str, package: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(situation: Situation = GPU) -> str:
        with pytest.raises(UserError) as raised:
            names(situation, **{field: name})
        return str(raised.value)

    (distribution, wanted), plain = package, "varlen" if field == "attention" else "torch"
    way = f"(pip install {distribution}=={wanted}); set it to auto or {plain}"
    assert f"pip install {distribution}=={wanted}\n" in (ROOT / "docs/install.md").read_text()
    have(monkeypatch)
    assert refusal().startswith(f"kernels.{field} = {name}: {distribution} is not installed {way}")
    have(monkeypatch, (distribution, "0.0.1"))
    assert refusal().startswith(
        f"kernels.{field} = {name}: calls {distribution} {wanted}, and 0.0.1 is installed {way}"
    )
    for capability in ((8, 9), (8, 0)):
        have(monkeypatch, package, capability=capability)
        assert "needs a GPU of compute capability 9.0 (Hopper) or above" in refusal()
    have(monkeypatch, package)
    found = choose(KernelsConfig.model_validate({field: name}), GPU)[field]
    assert (found.name, names(GPU)[field]) == (name, plain)
    assert f"{distribution} {wanted} (the recipe says so)" in found.why
    assert names(replace(GPU, precision=torch.float16), **{field: name})[field] == name
    monkeypatch.setattr(torch.version, "hip", "7.1")
    assert f"kernels.{field} = {name}: needs a GPU of NVIDIA" in refusal()
    monkeypatch.setattr(torch.version, "hip", None)
    assert "needs 16-bit precision" in refusal(replace(GPU, precision=torch.float32))
    assert "needs a GPU; set it to auto or" in refusal(CPU)


def test_flash_attention_4_takes_what_its_own_checks_let_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def takes(size: int, capability: tuple[int, int]) -> bool:
        have(monkeypatch, FA4, capability=capability)
        return obstacles.fa4(replace(GPU, head_size=size)) is None

    assert [takes(size, (9, 0)) for size in (8, 20, 64, 128, 192, 256, 264)] == [
        True,
        False,
        True,
        True,
        True,
        True,
        False,
    ]
    for blackwell in ((10, 0), (11, 0)):
        assert [takes(size, blackwell) for size in (64, 128, 192, 256)] == [True, True, False, True]
    assert [takes(size, (12, 0)) for size in (64, 128, 192, 256)] == [True, True, False, False]
    with pytest.raises(
        UserError, match=r"fa4: takes heads .* at most 128 on this GPU, and this encoder's have 192 \(width / "
    ):
        names(replace(GPU, head_size=192), attention="fa4")
    with pytest.raises(
        UserError, match=r"fa4: drops no attention weights, and model\.attention_dropout = 0\.1 \(0 is taken\)"
    ):
        names(replace(GPU, attention_dropout=0.1), attention="fa4")


@pytest.mark.usefixtures("triton")
def test_quacks_feed_forward_is_refused_where_it_would_go_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, QUACK)
    assert names(GPU, gelu="quack", layer_norm="triton")["gelu"] == "quack"
    refused = {
        replace(GPU, stage=3): "ZeRO 3 gathers",
        replace(GPU, widths=(768, 3076)): "multiples of 8, and model.shape has width = 768, feed_forward = 3076",
        replace(GPU, widths=(772, 3072)): "width = 772",
    }
    for situation, reason in refused.items():
        with pytest.raises(UserError, match=rf"kernels\.gelu = quack: .*{reason}.*; set it to auto or torch"):
            names(situation, gelu="quack")
    with pytest.raises(
        UserError, match=r"makes its own GELU, and kernels\.gelu = quack asks for others; set one of the two"
    ):
        names(GPU, layers="compiled", gelu="quack")


def test_apex_is_nvidias_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "apex")  # the one that PyPI has
    assert not have_apex()
    install(monkeypatch, "apex.optimizers", "amp_C", "triton")
    assert have_apex()
    assert names(GPU, optimizer="apex")["optimizer"] == "apex"
    with pytest.raises(UserError, match=r"kernels\.layer_norm = apex: NVIDIA's apex is not installed"):
        names(GPU, layer_norm="apex")
    install(monkeypatch, "apex.normalization", "fused_layer_norm_cuda")
    assert names(GPU, layer_norm="apex")["layer_norm"] == "apex"


def test_recipe_and_candidates_name_the_same() -> None:
    for field, candidates in CANDIDATES.items():
        assert set(KernelsConfig.model_fields[field].annotation.__args__) == {"auto", *candidates}  # type: ignore[union-attr]


def test_a_module_without_a_spec_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    assert not obstacles.installed("flash_attn")


WHOLE = """
import torch
from tests.model.test_m3p import SOURCES, backward, build, everything
from m3p.kernels.choice import Chosen
from m3p.kernels import cross_entropy_triton
cross_entropy_triton.BLOCK = 32
outcomes = []
for kernel in ("torch", "triton"):
    model = build(SOURCES["regions"]).train()
    kernels = {"attention": "grouped", "word_head": kernel, "layer_norm": kernel, "gelu": kernel, "layers": "eager"}
    model.encoder.recompute = kernel == "triton"  # what layers hand on passes through a checkpoint, too
    model.use({field: Chosen(name, "") for field, name in kernels.items()})
    fields = [getattr(module, name) for module in model.modules() for name in ("kernel", "gelu") if hasattr(module, name)]
    used = set(fields)
    assert used == {kernel}, used
    outputs = model(everything(SOURCES["regions"]))
    backward(outputs)
    outcomes.append([*outputs.tasks.values(), *(parameter.grad for parameter in model.parameters())])
for plain, fused in zip(*outcomes, strict=True):
    # As far as float32 goes: against float64, either is off by 3e-5, and gradients of zero by 1e-4.
    assert float((fused - plain).detach().norm()) <= 1e-4 * float(plain.detach().norm()) + 2e-4, (fused, plain)
"""


@pytest.mark.program
def test_a_whole_network_computes_the_same_with_the_fused_kernels() -> None:
    pytest.importorskip("triton")
    interpret(WHOLE)
