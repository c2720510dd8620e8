import json
from pathlib import Path
from typing import Any

import pytest

from m3p.errors import UserError
from m3p.training.deepspeed.config import OTHERS, RECIPES_OWN, read_deepspeed_config
from m3p.training.deepspeed.config import SECTIONS as READ
from m3p.training.deepspeed.unsupported import INSIDE, SECTIONS, unsupported
from tests.launch import ROOT


def refusal(folder: Path, content: dict[str, Any]) -> str:
    """Return the words with which a file of settings is refused."""
    path = folder / "ds.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_deepspeed_config(path)
    return str(caught.value)


def nested(name: str, value: Any) -> dict[str, Any]:
    """Return settings with `value` at a dotted name."""
    *above, last = name.split(".")
    settings: dict[str, Any] = {last: value}
    for part in reversed(above):
        settings = {part: settings}
    if above and above[0] in ("bf16", "fp16"):
        settings[above[0]]["enabled"] = True
    return settings


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("value", [{}, {"enabled": True}, True])
def test_a_section_that_is_not_supported_is_refused_with_reason_and_way_out(
    tmp_path: Path, name: str, value: Any
) -> None:
    said = refusal(tmp_path, {"zero_optimization": {"stage": 1}, name: value})
    assert f"has 1 mistake(s):\n  - {name}: {SECTIONS[name]}" in said


@pytest.mark.parametrize("name", INSIDE)
def test_a_setting_that_would_break_what_the_trainer_relies_on_is_refused(tmp_path: Path, name: str) -> None:
    only, why = INSIDE[name]
    other = {True: False, False: True}.get(only, 2) if isinstance(only, bool) else {1.0: 0.5}.get(only, 2)
    assert f"{name}: {why}" in refusal(tmp_path, nested(name, other))


@pytest.mark.parametrize("name", INSIDE)
def test_the_value_that_is_supported_may_be_written(name: str) -> None:
    assert not list(unsupported(nested(name, INSIDE[name][0])))
    assert not list(unsupported(nested(name, "auto")))


def test_all_are_named_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, {"wandb": {}, "pipeline": {}, "zero_optimization": {"zero_quantized_weights": True}})
    assert said.index("pipeline: ") < said.index("wandb: ") < said.index("zero_quantized_weights: ")


def test_an_unknown_name_is_still_met_with_the_nearest_known_one(tmp_path: Path) -> None:
    assert "steps_per_prnit: DeepSpeed has no such setting; did you mean steps_per_print?" in refusal(
        tmp_path, {"steps_per_prnit": 1}
    )


def test_every_name_that_deepspeed_reads_is_read_filled_in_or_refused() -> None:
    """DeepSpeed's own source names them; a new one in the next version must be judged."""
    from deepspeed.runtime import constants

    top = {
        "AMP", "AUTOCAST", "BFLOAT16", "CHECKPOINT", "COMMUNICATION_DATA_TYPE", "DATALOADER_DROP_LAST", "DATA_TYPES",
        "DISABLE_ALLGATHER", "DISABLE_PYTHON_GC", "DUMP_STATE", "EXPERT_PARALLEL", "FP16", "GRADIENT_ACCUMULATION_STEPS",
        "GRADIENT_ALLREDUCE_OP", "GRADIENT_CLIPPING", "GRADIENT_PREDIVIDE_FACTOR", "LOG_LEVEL",
        "MANAGED_GRADIENT_ACCUMULATION", "MEMORY_BREAKDOWN", "OPTIMIZER", "PIPELINE", "PRESCALE_GRADIENTS", "SCHEDULER",
        "SEQ_PARALLEL_COMMUNICATION_DATA_TYPE", "SPARSE_ATTENTION", "STEPS_PER_PRINT", "TORCH_AUTOCAST",
        "TRAIN_BATCH_SIZE", "TRAIN_MICRO_BATCH_SIZE_PER_GPU", "USE_DATA_BEFORE_EXPERT_PARALLEL", "VOCABULARY_SIZE",
        "WALL_CLOCK_BREAKDOWN", "ZERO_ALLOW_UNTESTED_OPTIMIZER", "ZERO_FORCE_DS_CPU_OPTIMIZER",
    }  # fmt: skip
    known = {*OTHERS, *RECIPES_OWN, *SECTIONS, *READ}
    names = {name: getattr(constants, name) for name in top if hasattr(constants, name)}
    assert len(names) > 25
    assert {name: value for name, value in names.items() if value not in known} == {}


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_shipped_files_use_nothing_of_it(path: Path) -> None:
    read_deepspeed_config(path)
