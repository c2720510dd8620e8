"""DeepSpeed's own settings, from ds_configs/*.json; what the recipe says is filled in, and refused where given twice."""

import difflib
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from m3p.errors import UserError
from m3p.optim.optimizer import OptimizerConfig
from m3p.stored_files import read_bounded
from m3p.training.deepspeed import unsupported as unsupported_settings
from m3p.training.deepspeed.unsupported import unsupported
from m3p.unicode_text import HALF, is_unicode

MAX_BYTES = 2**20
"""Of a file of settings."""
LISTED = 20
"""Mistakes that a message names."""
RECIPES_OWN = {
    "train_batch_size": "objectives.NAME.batch_size",
    "train_micro_batch_size_per_gpu": "objectives.NAME.micro_batch",
    "gradient_accumulation_steps": "objectives.NAME.batch_size and micro_batch",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "the optimizer section",
    "scheduler": "the schedule section",
    "tensorboard": "run.folder (TensorBoard files are always written there)",
}
SECTIONS: dict[str, dict[str, Any]] = {
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": True},
    "zero_optimization": {"stage": 2},
    "zero_optimization.offload_optimizer": {"device": "cpu"},
    "zero_optimization.offload_param": {"device": "cpu"},
}
"""Section that is read here -> an example of it."""
OTHERS = [
    "aio",
    "communication_data_type",
    "comms_logger",
    "dump_state",
    "gradient_predivide_factor",
    "log_level",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "timers",
    "wall_clock_breakdown",
]
"""Further names at the top that DeepSpeed reads (`_initialize_params` of its runtime/config.py, 0.19) and that change nothing
the trainer relies on. DeepSpeed itself passes over a name that it does not know."""

MIN_PART = 2**20
"""Numbers of a rank's part of a bucket of gradients, in the mean. Where there are fewer, there are so many parts that one sum of
the whole bucket takes less time: each part costs as many hops as there are ranks, however small it is."""

_SUMS = {"reduce_scatter", "use_multi_rank_bucket_allreduce"}
"""Settings by which a file says itself how stages 1 and 2 sum gradients over ranks."""


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """Return the settings as written, but for an "auto" inside `zero_optimization`, which means the default.

    Raises UserError: not there, not JSON, settings that are the recipe's, that DeepSpeed does not know, or that the trainer
    does not support.
    """
    if not path.is_file():
        raise UserError(f"--deepspeed_config {path} does not exist; ds_configs/ has one for each ZeRO stage")
    try:
        config = json.loads(read_bounded(path, MAX_BYTES), object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:  # bytes that are no text are a ValueError too
        raise UserError(f"{path} is not JSON: {error}") from error
    if not is_unicode(json.dumps(config, ensure_ascii=False)):
        raise UserError(f"{path}: one of its texts holds {HALF}; the rule is Unicode text")
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object of settings")
    twice = [f"{name} (set {field} in the recipe)" for name, field in RECIPES_OWN.items() if name in config]
    if twice:
        raise UserError(f"{path} sets what is the recipe's: {'; '.join(twice)}. Take it out of the file")
    mistakes = list(_mistakes(config)) or [*sorted(unsupported(config)), *_deepspeeds_mistakes(config)]
    if mistakes:
        more = [f"... and {len(mistakes) - LISTED:,} more"] if len(mistakes) > LISTED else []
        raise UserError("\n  - ".join([f"{path} has {len(mistakes)} mistake(s):", *mistakes[:LISTED], *more]))
    if "zero_optimization" in config:
        config["zero_optimization"] = _without_auto(config["zero_optimization"])
    return config


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; of a name given twice, json would take the last without a word. Raises ValueError."""
    ((name, times),) = Counter(name for name, _ in pairs).most_common(1) or [("", 0)]
    if times > 1:
        raise ValueError(f"{name} stands twice in one section; take one out")
    return dict(pairs)


def _mistakes(config: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with names at the top, sections, and the values that are read here."""
    known = [*(name for name in SECTIONS if "." not in name), *OTHERS]
    for name in (name for name in config if name not in known and name not in unsupported_settings.SECTIONS):
        yield f"{name}: DeepSpeed has no such setting; {_near(name, known)}"
    for name, example in SECTIONS.items():
        *above, last = name.split(".")
        section = config.get(above[0], {}) if above else config
        if isinstance(section, dict) and last in section and not isinstance(section[last], dict):
            yield f"{name} = {json.dumps(section[last])} is no section; write {json.dumps(example)}, or leave it out"
            return  # what is inside cannot be looked at
    for name, words in (("bf16", (True, False, "auto")), ("fp16", (True, False))):
        value = config[name].get("enabled") if name in config else False
        if not any(value is word or value == word == "auto" for word in words):
            yield f"{name}.enabled = {json.dumps(value)}: write {', '.join(json.dumps(word) for word in words)}"
    if config.get("bf16", {}).get("enabled") is True and config.get("fp16", {}).get("enabled") is True:
        yield "bf16.enabled and fp16.enabled are both true; choose one"
    if config.get("communication_data_type", "fp32") not in ("fp32", "bf16", "fp16"):
        yield f'communication_data_type = {json.dumps(config["communication_data_type"])}: write "fp32", "bf16", "fp16"'
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if type(stage) is not int or not 0 <= stage <= 3:  # true is an int to Python
        yield f"zero_optimization.stage = {json.dumps(stage)}: must be 0, 1, 2 or 3"


def _deepspeeds_mistakes(config: dict[str, Any]) -> Iterator[str]:
    """Yield what DeepSpeed's own classes refuse inside the sections that change what is trained."""
    logging.disable(logging.WARNING)  # it would say which accelerator it finds, which `m3p plan` does not ask
    try:
        from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    finally:
        logging.disable(logging.NOTSET)
    checks = {"bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config, "zero_optimization": DeepSpeedZeroConfig}
    for name, check in checks.items():
        try:
            check(**config.get(name, {}))
        except ValidationError as error:
            for entry in error.errors():
                field = ".".join([name, *(str(part) for part in entry["loc"])])
                if entry["type"] == "extra_forbidden":
                    fields = check.model_fields if len(entry["loc"]) == 1 else {}
                    known = [of.alias or place for place, of in fields.items()]
                    yield f"{field}: DeepSpeed has no such setting; {_near(str(entry['loc'][-1]), known)}"
                else:
                    value = f" = {json.dumps(entry['input'])}" if entry["loc"] else ""  # else it is the whole section
                    yield f"{field}{value}: {entry['msg'][0].lower()}{entry['msg'][1:]}"


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else "take it out of the file"


def _without_auto(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section of DeepSpeed's as it reads it itself: what is "auto" is left out."""
    return {
        name: _without_auto(value) if isinstance(value, dict) else value
        for name, value in section.items()
        if value != "auto"
    }


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
    _reduce_whole_buckets(config)
    if precision(config) != torch.float32:
        # Over micro-batches (gradient_sums.py; stage 0 keeps them there) and over ranks.
        if config.get("zero_optimization", {}).get("stage", 0) > 0:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
        config.setdefault("communication_data_type", "fp32")
    config.setdefault("steps_per_print", None)
    config.setdefault("wall_clock_breakdown", False)
    return config


def _reduce_whole_buckets(config: dict[str, Any]) -> None:
    """Have stages 1 and 2 sum each bucket of gradients where it lies (owner_sums.py), unless the file says how they shall.

    The sums are the same numbers: gradients are divided before they are summed. DeepSpeed's default also looks up each
    parameter's ranks in every backward, and copies the bucket before and after.
    """
    zero = config.get("zero_optimization", {})
    if zero.get("stage", 0) in (1, 2) and not _SUMS & zero.keys():
        zero["reduce_scatter"] = False
        config.setdefault("prescale_gradients", True)


def sums_on_owners(config: dict[str, Any]) -> bool:
    """Say whether the trainer has gradients summed on their owners (owner_sums.py) under the settings of a file, as read.

    Not where the file says itself how they are summed, and not where gradients do not lie end to end in a bucket.
    """
    zero = config.get("zero_optimization", {})
    offloaded = zero.get("offload_optimizer", {}).get("device", "none") != "none"  # DeepSpeed lays them end to end then
    return (
        zero.get("stage", 0) in (1, 2)
        and not _SUMS & zero.keys()
        and bool(config.get("prescale_gradients", True))
        and bool(zero.get("contiguous_gradients", True) or offloaded)
    )


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
    if zero.get("offload_param", {}).get("device") == "nvme":
        path = zero["offload_param"].get("nvme_path")
        if path is None or not Path(path).is_dir() or not os.access(path, os.W_OK):
            raise UserError(
                f"zero_optimization.offload_param.nvme_path = {path}: no folder of this node that may be written; name one that "
                "every node has on its drive (df -h lists them), or set the device to cpu"
            )


def keep_apart(settings: dict[str, Any], run: Path) -> None:
    """Give the weights that a run, whose folder is `run`, offloads to a drive a folder of their own there.

    When it starts, DeepSpeed deletes what lies in the folder that it is given: the weights of another run that trains on the
    node. A run has one owner, and the same folder at every start, so that killed ones do not fill the drive.
    """
    offload = settings.get("zero_optimization", {}).get("offload_param", {})
    if offload.get("device") == "nvme":
        name = hashlib.blake2b(os.fsencode(run.resolve()), digest_size=8).hexdigest()
        offload["nvme_path"] = str(Path(offload["nvme_path"]) / f"m3p-{name}")


def precision(config: dict[str, Any]) -> torch.dtype:
    """Return the number format of the network under a resolved configuration."""
    if config["bf16"]["enabled"]:
        return torch.bfloat16
    return torch.float16 if config.get("fp16", {}).get("enabled") else torch.float32
