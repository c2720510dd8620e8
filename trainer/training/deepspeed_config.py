"""DeepSpeed's own settings, from ds_configs/*.json; what the recipe says is filled in, and refused where given twice."""

import json
from pathlib import Path
from typing import Any

import torch

from trainer.errors import UserError
from trainer.training.optimizer import OptimizerConfig

RECIPES_OWN = {
    "train_batch_size": "objectives.NAME.batch_size",
    "train_micro_batch_size_per_gpu": "objectives.NAME.micro_batch",
    "gradient_accumulation_steps": "objectives.NAME.batch_size and micro_batch",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "the optimizer section",
    "scheduler": "the schedule section",
    "tensorboard": "run.folder (TensorBoard files are always written there)",
}
SECTIONS = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": True}, "zero_optimization": {"stage": 2}}
"""Those that are read here, and what one looks like."""


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """Return the settings as written. Raises UserError: not there, not JSON, or settings that are the recipe's."""
    if not path.is_file():
        raise UserError(f"--deepspeed_config {path} does not exist; ds_configs/ has one for each ZeRO stage")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object of settings")
    for name, example in SECTIONS.items():
        if not isinstance(config.get(name, {}), dict):
            raise UserError(f"{path}: {name} = {json.dumps(config[name])} is no section; write {json.dumps(example)}")
    twice = [f"{name} (set {field} in the recipe)" for name, field in RECIPES_OWN.items() if name in config]
    if twice:
        raise UserError(f"{path} sets what is the recipe's: {'; '.join(twice)}. Take it out of the file")
    return config


def resolve(config: dict[str, Any], optimizer: OptimizerConfig, device: torch.device) -> dict[str, Any]:
    """Return the whole configuration for `deepspeed.initialize` on `device`. Raises UserError: fp16 on a CPU, NVMe."""
    config = json.loads(json.dumps(config))
    bf16 = config.setdefault("bf16", {"enabled": "auto"})
    fp16 = config.get("fp16", {}).get("enabled", False)
    if bf16.get("enabled") == "auto":
        bf16["enabled"] = device.type == "cuda" and not fp16 and torch.cuda.is_bf16_supported()
    bf16.setdefault("check_grad_overflow", True)  # an update with a gradient that is not finite is never made
    if fp16 and device.type == "cpu":
        raise UserError("fp16.enabled: DeepSpeed has no fp16 on a CPU; use a file of ds_configs/ without it, or a GPU")
    _check_nvme(config.get("zero_optimization", {}))
    # The engine says itself where a step ends and scales the losses itself; what DeepSpeed wants to know is filled in.
    # More than 1, because with 1 the offload path keeps no sum over micro-batches.
    config["gradient_accumulation_steps"] = 2
    config["train_micro_batch_size_per_gpu"] = 1
    # DeepSpeed clips at 1.0 where this is left out.
    config["gradient_clipping"] = optimizer.clip
    config["zero_allow_untested_optimizer"] = True
    if "offload_optimizer" in config.get("zero_optimization", {}):
        # torch's fused AdamW serves on the CPU too; DeepSpeed's own would have to be compiled at start-up.
        config["zero_force_ds_cpu_optimizer"] = False
    config.setdefault("steps_per_print", None)
    config.setdefault("wall_clock_breakdown", False)
    return config


def have_aio() -> bool:
    """Whether DeepSpeed can read and write NVMe drives here: its aio operation builds only where libaio is installed."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(AsyncIOBuilder().is_compatible(verbose=False))


def _check_nvme(zero: dict[str, Any]) -> None:
    if zero.get("offload_optimizer", {}).get("device") == "nvme":
        raise UserError(
            "zero_optimization.offload_optimizer.device = nvme: checkpoints cannot reach moments on a drive; set it to cpu. "
            "offload_param.device = nvme is fine (ds_configs/zero3_nvme.json)"
        )
    if zero.get("offload_param", {}).get("device") == "nvme" and not have_aio():
        raise UserError(
            "zero_optimization.offload_param.device = nvme: DeepSpeed's aio operation cannot be built here; install the "
            "headers of libaio (libaio-dev), or set the device to cpu"
        )


def precision(config: dict[str, Any]) -> torch.dtype:
    """Return the number format of the network under a resolved configuration."""
    if config["bf16"]["enabled"]:
        return torch.bfloat16
    return torch.float16 if config.get("fp16", {}).get("enabled") else torch.float32
