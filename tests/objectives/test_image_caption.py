"""Pairs as packed micro-batches: targets point at the right slots, and nothing depends on who packs what."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3p.batch import Batch
from m3p.data.order.plan import split
from m3p.data.sample import BadSamples
from m3p.objectives.image_caption import ImageCaption
from m3p.objectives.objective import Objective
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives

TURN = range(7, 14)


@pytest.fixture(scope="module")
def objectives(tiny: Path) -> dict[str, Objective]:
    return build_objectives(load_recipe(tiny))


def sequences(batch: Batch) -> list[tuple[Any, ...]]:
    """Return each sequence as (token ids, features), to compare batches that were packed apart."""
    ends = torch.cumsum(batch.lengths, 0).tolist()
    starts = [0, *ends[:-1]]
    found = []
    for start, end in zip(starts, ends, strict=True):
        words = batch.token_ids[(batch.token_slots >= start) & (batch.token_slots < end)]
        features = batch.visual_features[batch.visual_rows[(batch.visual_slots >= start) & (batch.visual_slots < end)]]
        found.append((tuple(words.tolist()), features.numpy().tobytes()))
    return found


def asked(batch: Batch) -> list[tuple[Any, ...]]:
    """Return all that the tasks ask as (task, sequences it is asked of, place in it or -1, further targets)."""
    content, ends = sequences(batch), torch.cumsum(batch.lengths, 0)
    found = []
    for task, targets in batch.targets.items():
        columns = [
            targets[name].tolist()
            for name in ("labels", "classes", "features", "rows", "captions", "pictures")
            if name in targets
        ]
        places = [-1] * len(columns[0])
        if "slots" in targets:
            owners = torch.searchsorted(ends, targets["slots"], right=True)
            places = (targets["slots"] - (ends - batch.lengths)[owners]).tolist()
            of = [owners.tolist()]
        else:
            of = [rows.tolist() for name, rows in targets.items() if name.endswith("sequences")]
        for place, numbers, row in zip(places, zip(*of, strict=True), zip(*columns, strict=True), strict=True):
            found.append((task, [content[number] for number in numbers], place, row))
    return found


def joined(batches: list[Batch], read: Callable[[Batch], list[Any]]) -> list[Any]:
    """Sorted: a micro-batch holds the texts of all its pairs, then their pictures, and so on."""
    return sorted(item for batch in batches if batch.samples for item in read(batch))


@pytest.mark.long
@pytest.mark.parametrize("name", ["image_caption", "code_switched", "multilingual_text"])
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranks=st.integers(1, 9), micro_batch=st.integers(1, 8))
def test_a_turn_is_the_same_however_it_is_split(
    objectives: dict[str, Objective], name: str, ranks: int, micro_batch: int
) -> None:
    objective = objectives[name]
    whole = [objective.batch(TURN, TURN)]
    parts = [objective.batch(TURN, part) for rank in range(ranks) for part in split(TURN, ranks, rank, micro_batch)]
    assert joined(parts, sequences) == joined(whole, sequences)
    assert joined(parts, asked) == joined(whole, asked)
    assert {task for task, *_ in asked(whole[0])} == set(objective.tasks)


def test_masked_words_ask_for_what_stood_there(objectives: dict[str, Objective]) -> None:
    objective = objectives["multilingual_text"]
    batch = objective.batch(TURN, TURN)
    targets = batch.targets["masked_words"]
    shown = batch.token_ids[targets["slots"]]  # text alone: slots are words
    mask = objective.context.tokenizer.mask
    assert 0 < len(shown) < len(batch.token_ids)
    assert (shown == mask).float().mean() > 0.5
    untouched = shown[shown != mask]
    assert len(untouched) == 0 or (untouched >= 4).all()
    samples = [objective.mix.read(position, BadSamples([])) for position in TURN]
    true = np.concatenate([objective.context.tokenizer.encode(s.text, 32) for s in samples])
    assert targets["labels"].tolist() == true[targets["slots"].numpy()].tolist()
    kept = np.setdiff1d(np.arange(len(true)), targets["slots"].numpy())
    assert batch.token_ids.numpy()[kept].tolist() == true[kept].tolist()


def test_masked_regions_ask_for_the_features_that_were_hidden(objectives: dict[str, Objective]) -> None:
    objective = objectives["image_caption"]
    batch = objective.batch(range(40), range(40))
    targets = batch.targets["masked_regions"]
    place = {slot: row for row, slot in enumerate(batch.visual_slots.tolist())}
    shown = batch.visual_features[batch.visual_rows[[place[slot] for slot in targets["slots"].tolist()]]]
    hidden = shown.abs().sum(1) == 0
    assert hidden.float().mean() > 0.6
    assert torch.equal(shown[~hidden], targets["features"][~hidden])
    assert torch.allclose(targets["features"].norm(dim=1), torch.ones(len(hidden)), atol=1e-5)


def test_every_pair_is_matched_once_truly_and_once_falsely(objectives: dict[str, Objective]) -> None:
    objective = objectives["image_caption"]
    assert isinstance(objective, ImageCaption)
    batch = objective.batch(TURN, TURN)
    assert batch.targets["matching"]["labels"].tolist() == [1.0] * len(TURN) + [0.0] * len(TURN)


def test_true_and_mismatched_captions_are_switched_alike(objectives: dict[str, Objective]) -> None:
    objective = objectives["code_switched"]
    assert isinstance(objective, ImageCaption)
    samples = [objective.mix.read(position, BadSamples([])) for position in range(30)]
    first = [objective.text(sample).text for sample in samples]
    assert first == [objective.text(sample).text for sample in samples]
    plain = [next(iter(sample.captions.values()))[0] for sample in samples]
    switched = sum(one != other for one, other in zip(first, plain, strict=True))
    assert 10 < switched < 30
