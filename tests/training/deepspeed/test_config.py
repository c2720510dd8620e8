import json
from pathlib import Path
from typing import Any

import pytest
import torch

from m3p.errors import UserError
from m3p.optim.optimizer import OptimizerConfig
from m3p.training.deepspeed.config import RECIPES_OWN, precision, read_deepspeed_config, resolve
from tests.launch import ROOT

OPTIMIZER = OptimizerConfig(learning_rate=0.1, clip=0.7)
CPU = torch.device("cpu")


def write(folder: Path, content: Any) -> Path:
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), errors="surrogateescape")
    return path


# fp16 and NVMe are refused on this machine: test_ds_configs.py
TAKEN = [
    path for path in sorted((ROOT / "ds_configs").glob("*.json")) if "fp16" not in path.stem and "nvme" not in path.stem
]


@pytest.mark.parametrize("path", TAKEN, ids=lambda path: path.stem)
def test_every_shipped_file_resolves_on_a_cpu(path: Path) -> None:
    settings = read_deepspeed_config(path)
    assert settings["zero_optimization"]["stage"] == int(path.stem[4])
    resolved = resolve(settings, OPTIMIZER, CPU)
    assert precision(resolved) == torch.float32
    assert resolved["gradient_clipping"] == 0.7
    assert resolved["gradient_accumulation_steps"] > 1
    assert "enabled" in settings["bf16"]
    assert settings["bf16"]["enabled"] == "auto", "what was read is not changed"
    if "offload" in path.stem:
        assert resolved["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize(("name", "field"), RECIPES_OWN.items())
def test_what_is_the_recipes_is_refused_with_its_field(tmp_path: Path, name: str, field: str) -> None:
    with pytest.raises(UserError) as caught:
        read_deepspeed_config(write(tmp_path, {"zero_optimization": {"stage": 1}, name: 1}))
    assert f"{name} (set {field} in the recipe). Take it out of the file" in str(caught.value)


def test_all_of_them_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_deepspeed_config(write(tmp_path, dict.fromkeys(RECIPES_OWN, 1)))
    assert all(name in str(caught.value) for name in RECIPES_OWN)


@pytest.mark.long
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object of settings"),
        ('{"bf16": true}', r'bf16 = true is no section; write {"enabled": "auto"}'),
        ('{"zero_optimization": 2}', r'zero_optimization = 2 is no section; write {"stage": 2}'),
        ("\udcff", "is not JSON"),
        (
            '{"zero_optimization": {"offload_param": {"nvme_path": "\\ud800"}}}',
            "one of its texts holds half a character",
        ),
        (json.dumps({"x": "y" * 2**20}), "is not JSON: it has more than 1,048,576 bytes"),
        (json.dumps({f"x{number}": 1 for number in range(30_000)}), "and 29,980 more"),
        ('{"bf16": {}}', 'bf16.enabled = null: write true, false, "auto"'),
        ('{"bf16": {"enabled": 1}}', 'bf16.enabled = 1: write true, false, "auto"'),
        ('{"fp16": {"enabled": "auto"}}', 'fp16.enabled = "auto": write true, false'),
        ('{"fp16": {"enabled": true}, "bf16": {"enabled": true}}', "are both true; choose one"),
        ('{"zero_optimization": {"stage": 4}}', "zero_optimization.stage = 4: must be 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": null}}', "zero_optimization.stage = null: must be 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": "0"}}', 'zero_optimization.stage = "0": must be 0, 1, 2 or 3'),
        ('{"zero_optimization": {"stage": true}}', "zero_optimization.stage = true: must be 0, 1, 2 or 3"),
        (
            '{"zero_optimization": {"reduce_bucket_sise": 1}}',
            "reduce_bucket_sise: DeepSpeed .* mean reduce_bucket_size[?]",
        ),
        (
            '{"zero_optimization": {"reduce_bucket_size": -1}}',
            "reduce_bucket_size = -1: input should be greater than 0",
        ),
        (
            '{"zero_optimization": {"offload_optimizer": "cpu"}}',
            'offload_optimizer = "cpu" is no section; write {"device": "cpu"}',
        ),
        ('{"zero_optimization": {"offload_optimizer": null}}', "offload_optimizer = null is no section"),
        (
            '{"zero_optimization": {"offload_param": {"device": "gpu"}}}',
            'offload_param.device = "gpu": input should be',
        ),
        (
            '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}',
            "zero_optimization: assertion failed, Partial offloading only supported for ZeRO Stage 3",
        ),
        (
            '{"zero_optimisation": {"stage": 1}}',
            "zero_optimisation: DeepSpeed has no such setting; did you mean zero_optimization[?]",
        ),
        ('{"communication_data_type": "float32"}', 'communication_data_type = "float32": write "fp32", "bf16", "fp16"'),
        ('{"gibberish": 1}', "gibberish: DeepSpeed has no such setting; take it out of the file"),
        ('{"bf16": {"enabled": true}, "bf16": {"enabled": false}}', "bf16 stands twice in one section"),
    ],
)
def test_a_file_that_is_no_settings_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_deepspeed_config(write(tmp_path, content))


def test_auto_is_read_as_deepspeed_does(tmp_path: Path) -> None:
    written = {"stage": 3, "reduce_bucket_size": "auto", "offload_param": {"device": "cpu", "pin_memory": "auto"}}
    zero = read_deepspeed_config(write(tmp_path, {"zero_optimization": written}))["zero_optimization"]
    assert zero == {"stage": 3, "offload_param": {"device": "cpu"}}


def test_a_missing_file_names_the_folder_of_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; ds_configs/ has one for each ZeRO stage"):
        read_deepspeed_config(tmp_path / "zero9.json")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, torch.float32),
        ({"bf16": {"enabled": "auto"}}, torch.float32),
        ({"bf16": {"enabled": True}}, torch.bfloat16),
        ({"bf16": {"enabled": False}}, torch.float32),
    ],
)
def test_precision_is_what_the_file_asks_for(settings: dict[str, Any], expected: torch.dtype) -> None:
    assert precision(resolve(settings, OPTIMIZER, CPU)) == expected


def test_gradients_of_16_bits_are_summed_in_float32_over_micro_batches_and_ranks() -> None:
    for stage in range(4):
        settings = resolve({"bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}, OPTIMIZER, CPU)
        assert settings["communication_data_type"] == "fp32"
        # Stage 0 refuses the setting; gradient_sums.py does it there.
        assert settings.get("data_types") == ({"grad_accum_dtype": "fp32"} if stage else None)
    assert "data_types" not in resolve({"zero_optimization": {"stage": 2}}, OPTIMIZER, CPU)
    chosen = resolve({"bf16": {"enabled": True}, "communication_data_type": "bf16"}, OPTIMIZER, CPU)
    assert chosen["communication_data_type"] == "bf16"


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match="DeepSpeed has no fp16 on a CPU"):
        resolve({"fp16": {"enabled": True}}, OPTIMIZER, CPU)


def test_no_clipping_is_said_to_deepspeed_which_clips_otherwise() -> None:
    assert resolve({}, OptimizerConfig(learning_rate=0.1, clip=0), CPU)["gradient_clipping"] == 0
