import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from m3p.kernels import obstacles
from m3p.kernels.choice import KernelsConfig, choose
from m3p.kernels.obstacles import FA4, QUACK, Situation
from tests.launch import ROOT


def run(program: str, *options: str, folder: Path) -> Any:
    """Run a program of benchmarks/ on a CPU; return what it wrote as JSON."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = f"{ROOT / 'trainer'}{os.pathsep}{ROOT}"
    command = [sys.executable, str(ROOT / "benchmarks" / program), *options, "--json", str(folder / "found.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.program
def test_the_experiment_runs_at_a_tiny_size_on_a_cpu(tmp_path: Path) -> None:
    # The other one is benchmarks/step.py, which gpu.sh runs.
    parts = "ceilings,host,norm,head,word_gradient,attention,gelu,gather,wire,gemm"
    found = run("variants.py", "--cpu", "--parts", parts, folder=tmp_path)
    assert {row["part"].partition(",")[0] for row in found["rows"]} == set(parts.split(","))
    assert found["left_out"] == found["failed"] == []
    for row in found["rows"]:
        assert row["seconds"] > 0, row
        tolerance = 1e-2 if row["name"] in ("float16", "bfloat16") else 1e-5  # on the wire they are narrower than here
        assert row["error"] is None or row["error"] < tolerance, row
    missing = {f"{one['part']}/{one['name']}": one["why"] for one in found["missing"]}
    assert missing == dict.fromkeys(
        ["attention/varlen", "attention/triton", "attention/flash_attn", "attention/fa4", "gelu/triton", "gelu/quack"],
        "needs a GPU",
    )
    assert {"norm/again", "norm, used twice/again", "host/one pass", "host/turn by turn, no DeepSpeed"} <= found[
        "ratios"
    ].keys()
    assert found["sizes"]["width"] == 32
    assert "6ND" in found["mfu_formula"]


def test_kernels_that_only_a_gpu_runs_are_named_as_the_recipe_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    words = [word for one in import_module("variants").PROGRAMS["step"][0].values() for word in one]
    script = (ROOT / "benchmarks/gpu.sh").read_text()
    lists = [word for word in words if "=" in word]
    lists += re.findall(r"--kernels (\S+)", script)
    lists += [",".join(re.findall(r"kernels\.(\w+=\w+)", line)) for line in script.splitlines()]
    asked = [dict(pair.split("=") for pair in one.split(",")) for one in lists if one and "flash_attn" not in one]
    optional = [one for one in asked if {"fa4", "quack"} & {*one.values()}]
    assert optional == [{"attention": "fa4"}, {"gelu": "quack"}]
    monkeypatch.setattr(obstacles, "version", dict([FA4, QUACK]).__getitem__)
    monkeypatch.setattr(obstacles, "_triton_builds", lambda: None)
    assert {"layer_norm": "triton", "gelu": "triton"} in asked
    for one in asked:
        choose(KernelsConfig.model_validate(one), Situation("cuda", torch.bfloat16, stage=1))


def test_a_step_whose_package_is_missing_is_named_and_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    variants = import_module("variants")
    chosen = {name: variants.PROGRAMS["step"][0][name] for name in ("FlashAttention 4", "QuACK's feed-forward")}
    monkeypatch.setitem(variants.PROGRAMS, "step", (chosen, [], []))
    monkeypatch.setattr(obstacles, "version", lambda name: "0.0.1")
    found = {one.name: one.why for one in variants._programs("step", False, 0.0)}
    assert f"{FA4[0]} {FA4[1]}, and 0.0.1 is installed" in found["FlashAttention 4"]
    assert f"{QUACK[0]} {QUACK[1]}, and 0.0.1 is installed" in found["QuACK's feed-forward"]


@pytest.mark.program
def test_a_program_that_the_budget_ends_is_left_out_and_did_not_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    variants = import_module("variants")
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(variants, "HERE", tmp_path)
    monkeypatch.setitem(variants.PROGRAMS, "host", ({"": ["slow.py"], "compiled": ["slow.py"]}, [], []))
    written = tmp_path / "found.json"
    options = ["--cpu", "--parts", "host,wire", "--budget", "0.5", "--json", str(written)]
    monkeypatch.setattr(sys, "argv", ["variants.py", *options])
    variants.main()
    found = json.loads(written.read_text())
    assert found["failed"] == []
    assert found["left_out"] == ["slow.py in host (ended after 1 s), and what follows it", "wire"]
    assert "Not measured (budget: 0.5 s): slow.py in host" in capsys.readouterr().out


def test_stopped_by_hand_it_keeps_and_prints_what_it_knows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    variants = import_module("variants")

    def stopped(clock: Any, sizes: Any) -> Iterator[Any]:
        yield variants.Row("wire", "by hand", 0.25, 0.25)
        raise KeyboardInterrupt

    monkeypatch.setitem(variants.PARTS, "wire", stopped)
    written = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["variants.py", "--cpu", "--parts", "wire,gemm", "--json", str(written)])
    with pytest.raises(SystemExit, match="130"):
        variants.main()
    found = json.loads(written.read_text())
    assert [row["name"] for row in found["rows"]] == ["by hand"]
    assert found["left_out"] == ["the rest of wire, which was stopped", "gemm"]
    assert "250.000" in capsys.readouterr().out
    # A file that cannot be written is said before anything is measured.
    monkeypatch.setattr(sys, "argv", ["variants.py", "--cpu", "--parts", "wire", "--json", str(tmp_path / "a" / "b")])
    with pytest.raises(FileNotFoundError):
        variants.main()
    assert "by hand" not in capsys.readouterr().out


def test_the_peer_is_compiled_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    peer, found = import_module("peer"), []
    layer = type("Layer", (), {"compile": lambda self, dynamic: found.append(dynamic)})()
    lm = SimpleNamespace(roberta=SimpleNamespace(encoder=SimpleNamespace(layer=[layer] * 3)))
    peer.Peer.compile_layers(SimpleNamespace(lm=lm))
    assert found == [True] * 3


@pytest.mark.program
def test_scaling_is_simulated_and_one_pass_never_loses(tmp_path: Path) -> None:
    found = run("scaling.py", "m3p_base", "zero1", folder=tmp_path)
    # With the longest samples, which are twice the usual ones, the program would seem to set the pace far later.
    assert "objectives.image_caption.max_tokens=22" in found["lengths"]
    rows = found["rows"]
    speed = {(row["scaling"], row["gpus"]): row["samples_per_second_and_gpu"] for row in rows}
    assert {gpus for _, gpus in speed} == {8, 16, 32, 64, 128, 256, 512, 1024}
    for gpus in (8, 64, 1024):
        assert speed["strong, one pass", gpus] >= speed["strong", gpus]
    assert speed["strong, one pass", 64] > 2 * speed["strong", 64]
    assert speed["strong", 16] < 0.7 * speed["strong", 8]
    assert 0.5 * speed["weak, one pass", 8] < speed["weak, one pass", 1024] < speed["weak, one pass", 8]
