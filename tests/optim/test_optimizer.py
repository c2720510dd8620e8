from collections import Counter

import pytest
import torch
from torch import nn

from m3p.model.build import build_model
from m3p.model.config import ModelConfig
from m3p.model.m3p import M3P
from m3p.objectives.tasks import TASKS
from m3p.optim.optimizer import OptimizerConfig, make_optimizer, parameter_groups, set_rate
from m3p.visual import VisualConfig
from m3p.visual.patches import Patches
from m3p.visual.regions import Regions

SHAPE = {"layers": 1, "width": 8, "heads": 2, "feed_forward": 8, "positions": 10}
CONFIG = OptimizerConfig(learning_rate=0.01, new_learning_rate=0.5, weight_decay=0.1)
SOURCES: list[VisualConfig] = [
    Regions(kind="regions", feature_size=4, classes=3),
    Patches(kind="patches", size=8, patch=4),
]


def build(visual: VisualConfig = SOURCES[0], **settings: object) -> M3P:
    config = ModelConfig.model_validate({"shape": SHAPE, "tokenizer": "t", **settings})
    return build_model(config, 20, visual, TASKS.values(), 0)


def named(model: nn.Module, config: OptimizerConfig = CONFIG) -> dict[str, tuple[float, float]]:
    """Peak rate and decay of each parameter, by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["peak"], group["weight_decay"])
        for group in parameter_groups(model, config)
        for parameter in group["params"]
    }


def test_every_trained_parameter_is_in_one_group_and_a_tied_one_too() -> None:
    model = build(freeze=["positions"])
    counts = Counter(id(p) for group in parameter_groups(model, CONFIG) for p in group["params"])
    assert set(counts.values()) == {1}
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert counts.keys() == trained
    assert id(model.get_parameter("heads.masked_words.weight")) == id(model.text.words.weight)
    assert id(model.text.words.weight) in counts
    assert id(model.text.positions.weight) not in counts


def test_the_tied_weight_has_the_rate_of_the_text_embedder() -> None:
    assert named(build())["text.words.weight"] == (0.01, 0.1)


@pytest.mark.parametrize("visual", SOURCES)
def test_norms_biases_places_and_the_temperature_do_not_decay_and_matrices_do(visual: VisualConfig) -> None:
    model = build(visual)
    norms = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for kind in ("weight", "bias")
    }
    assert len(norms) > 8
    for name, (_, decay) in named(model).items():
        places = name.endswith(("positions.weight", "types.weight", "places.weight"))
        kept = name in norms or name.endswith("bias") or name == "heads.contrastive.log_scale" or places
        assert decay == (0.0 if kept else 0.1), name


def test_what_starts_from_nothing_has_its_own_rate() -> None:
    for name, (peak, _) in named(build()).items():
        assert peak == (0.5 if name.startswith(("visual.", "heads.")) else 0.01), name
    same = named(build(), CONFIG.model_copy(update={"new_learning_rate": None}))
    assert {peak for peak, _ in same.values()} == {0.01}


def test_the_schedule_scales_every_group_and_reports_the_encoders_rate() -> None:
    optimizer = make_optimizer(build(), CONFIG)
    assert set_rate(optimizer, 0.25) == pytest.approx(0.0025)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0025, 0.125}
    assert set_rate(optimizer, 1.0) == pytest.approx(0.01)


def test_a_step_is_adamw_with_decoupled_decay() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, beta1=0.9, beta2=0.98, epsilon=1e-8)
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0)
        assert model.bias is not None
        model.bias.fill_(2.0)
    optimizer = make_optimizer(model, config)
    set_rate(optimizer, 1.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    # The first step of Adam is one rate long, whatever the gradient.
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1)
    assert model.bias.item() == pytest.approx(2.0 - 0.1)


def test_each_layer_has_a_share_of_the_rate_of_the_one_above_it() -> None:
    model = build(shape={**SHAPE, "layers": 3})
    peaks = {name: peak for name, (peak, _) in named(model, CONFIG.model_copy(update={"layer_decay": 0.5})).items()}
    assert [peaks[f"encoder.layers.{layer}.qkv.weight"] for layer in (2, 1, 0)] == [0.005, 0.0025, 0.00125]
    assert peaks["text.words.weight"] == 0.01 / 2**4
    assert {peak for name, peak in peaks.items() if name.startswith("visual.")} == {0.5 / 2**4}
    assert {peak for name, peak in peaks.items() if name.startswith("heads.")} == {0.5}


def test_the_rate_that_is_shown_is_that_of_the_top_layer() -> None:
    optimizer = make_optimizer(build(), CONFIG.model_copy(update={"layer_decay": 0.5}))
    assert set_rate(optimizer, 0.1) == pytest.approx(0.1 * 0.005)
