"""Micro-batches that are computed in one pass give what each gives alone."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from m3p.batch import Batch, Sequence
from m3p.errors import OneRankError
from m3p.joined import join
from m3p.model.m3p import M3P, Outputs
from m3p.objectives.tasks.masked_regions import ask_regions
from m3p.packing import Packer
from m3p.visual import VisualConfig
from tests.model.test_m3p import SOURCES, build, empty, everything, picture, text_only, words

TEXT, PAIRS = ["masked_words"], ["masked_words", "masked_regions", "matching", "contrastive"]


def hiding(visual: VisualConfig) -> Batch:
    """Pack two pairs with tokens of their pictures hidden, and a text between them."""
    packer = Packer(*visual.features)
    for seed in (3, 4):
        shown, places = picture(visual, seed), np.array([seed - 3, 2])
        sequence, first = packer.add(Sequence(words(seed), shown))
        packer.hide(sequence, places, shown)
        ask_regions(packer, first + 5 + places, [(shown, places)])
        packer.add(Sequence(words(seed, 3)))
    return packer.finish(2)


def parts_of(visual: VisualConfig) -> tuple[list[Batch], list[list[str]]]:
    """Return the micro-batches of five turns, and the tasks of each."""
    makes = (text_only, hiding, everything, empty, hiding)
    return [make(visual) for make in makes], [TEXT, PAIRS, PAIRS, PAIRS, PAIRS]


def scales_of(tasks: list[list[str]]) -> list[dict[str, float]]:
    """Return a scale for the loss of each task of each micro-batch, no two alike."""
    return [dict.fromkeys(names, number + 0.5) for number, names in enumerate(tasks)]


def gradients(model: M3P, outputs: list[Outputs], scales: list[dict[str, float]], summed: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a loss that reads all outputs, by the scales of each micro-batch; `summed` is a part of it."""
    model.zero_grad()
    loss = summed
    for one, of_tasks in zip(outputs, scales, strict=True):
        loss = loss + one.touch
        for name, output in one.tasks.items():
            if output.requires_grad:  # those of joined word losses are in `summed`
                loss = loss + of_tasks[name] * (output.sum() if name == "masked_words" else output.square().sum())
    torch.autograd.backward(loss)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("source", SOURCES)
def test_outputs_and_gradients_are_those_of_each_alone(source: str) -> None:
    visual = SOURCES[source]
    model, (parts, tasks) = build(visual), parts_of(visual)
    scales = scales_of(tasks)
    alone = [model(part) for part in parts]
    outputs = model(join(parts, scales))
    assert outputs.tasks == {}
    assert outputs.summed.keys() == {"masked_words"}
    for one, other in zip(outputs.parts, alone, strict=True):
        assert one.tasks.keys() == other.tasks.keys()
        assert one.targets.keys() == other.targets.keys()
        for name, output in other.tasks.items():
            torch.testing.assert_close(one.tasks[name], output, rtol=1e-5, atol=1e-6)
    wanted = gradients(model, alone, scales, torch.zeros(()))
    found = gradients(model, outputs.parts, scales, outputs.summed["masked_words"])
    assert found.keys() == wanted.keys() == dict(model.named_parameters()).keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def test_modules_are_called_alike_whatever_samples_a_rank_has() -> None:
    visual = SOURCES["regions"]
    model, (parts, tasks) = build(visual), parts_of(visual)
    calls: list[Counter[str]] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls[-1].update([name]))
    for batches in (parts, [empty(visual) for _ in parts]):
        calls.append(Counter())
        model(join(batches, scales_of(tasks)))
    assert calls[0] == calls[1]
    assert calls[0]["encoder"] == calls[0]["encoder.layers.0"] == 1
    assert calls[0]["heads.matching"] == 1
    assert calls[0]["heads.masked_words"] == 1


def test_a_part_that_is_not_finite_does_not_spoil_the_others() -> None:
    visual = SOURCES["regions"]
    parts, tasks = parts_of(visual)
    parts[1].visual_features.fill_(float("nan"))
    found = build(visual)(join(parts, scales_of(tasks))).parts
    broken = [any(not output.isfinite().all() for output in one.tasks.values()) for one in found]
    assert broken == [False, True, False, False, False]
    assert all(bool(one.touch.isfinite()) for one in found)


def test_pictures_of_two_forms_are_refused() -> None:
    visual = SOURCES["regions"]
    parts: list[Any] = [everything(visual), everything(visual)]
    parts[1].visual_features = parts[1].visual_features.half()
    with pytest.raises(OneRankError, match=r"run.join_turns: .* \(float16 \(5,\), float32 \(5,\)\)"):
        join(parts, scales_of([PAIRS, PAIRS]))
