"""What matching can learn where pictures carry nothing but their source: it must be nothing.

A partner of another source would give itself away: its text and its picture are of two sources, which a true pair never is.
The measurement is that of a real network on the pairs that the objective makes, half of which match.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from m3p.data.tokenizer import Tokenizer
from m3p.model.build import build_model
from m3p.objectives import OBJECTIVES
from m3p.objectives.image_caption import ImageCaption
from m3p.objectives.mismatches import MAX_TRIED, Candidates
from m3p.objectives.objective import Context
from m3p.objectives.tasks.matching import Matching
from m3p.prepare.shards import ShardWriter
from m3p.recipe.load import parse_recipe
from m3p.visual.regions import Regions
from tests.tiny import CLASSES, FEATURE_SIZE, WORDS, tiny_recipe
from tests.visual.test_regions import packed

STEPS, JUDGED, BATCH = 60, 20, 16
"""Turns trained on, turns judged afterwards, and pairs of a turn."""


def picture(source: int, number: int) -> bytes:
    """Regions that tell the source, and of the sample no more than that it is not another one's file."""
    feature = np.zeros((2, FEATURE_SIZE), np.float16)
    feature[:, source] = 1
    feature[:, -1] = number / 1000
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], np.float32)
    return packed({"boxes": boxes, "features": feature, "class_ids": np.zeros(2, np.int64)})


def two_sources(folder: Path, tokenizer: Path) -> ImageCaption:
    """Matching on two sources with words of their own, each half of the pairs."""
    for source in range(2):
        words = WORDS["en"][5 * source :][:5]
        captions = [f"{one} {other}" for one in words for other in words if one != other]
        with ShardWriter(folder / str(source), "captions", 100) as writer:
            for number, caption in enumerate(captions):
                record = json.dumps({"captions": {"en": [caption]}}).encode()
                writer.write({"png": b"", "json": record, "regions.npz": picture(source, number)})
    fields = {
        "batch_size": BATCH,
        "sources": [{"path": str(folder / str(source)), "weight": 1.0} for source in range(2)],
        "tasks": {"matching": 1.0},
    }
    visual = Regions(kind="regions", feature_size=FEATURE_SIZE, classes=CLASSES)
    context = Context("image_caption", 0, Tokenizer(tokenizer), visual, 1)
    objective = OBJECTIVES["image_caption"].model_validate(fields).build(context)
    assert isinstance(objective, ImageCaption)
    return objective


def accuracy(tiny: Path, folder: Path) -> float:
    """Train a network on matching alone; return the share of pairs of later turns that it judges rightly."""
    only = ["objectives.multilingual_text.weight=0", "objectives.code_switched.weight=0", "evaluation={}"]
    recipe = parse_recipe(tiny_recipe(tiny.parent), "tiny", [*only, "objectives.image_caption.tasks={matching: 1}"])
    objective = two_sources(folder, recipe.tokenizer_folder)
    model = build_model(recipe.model, objective.context.tokenizer.size, recipe.visual, recipe.tasks, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    right = asked = 0
    for number in range(STEPS + JUDGED):
        turn = range(number * BATCH, (number + 1) * BATCH)
        batch = objective.batch(turn, turn)
        found = model(batch)
        logits, targets = found.tasks["matching"], found.targets["matching"]
        if number < STEPS:
            optimizer.zero_grad()
            torch.autograd.backward(Matching().loss(logits, targets) / len(logits))
            optimizer.step()
        else:
            right += int(((logits > 0) == (targets["labels"] > 0.5)).sum())
            asked += len(logits)
    assert asked == 2 * BATCH * JUDGED
    return right / asked


@pytest.mark.long
def test_matching_is_at_chance_where_pictures_carry_nothing(tiny: Path, tmp_path: Path) -> None:
    assert accuracy(tiny, tmp_path) == pytest.approx(0.5, abs=0.06)


@pytest.mark.long
def test_this_measurement_sees_partners_of_another_source(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def next_ones(
        self: Candidates, position: int, limit: int = MAX_TRIED
    ) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        place = position - self._start
        return self._start + (place + 1 + np.arange(limit)) % len(self._sources)

    monkeypatch.setattr(Candidates, "of", next_ones)
    assert accuracy(tiny, tmp_path) > 0.65
