"""The centre of texts: the mean of captions as training sees them, measured once."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from m3p.model.build import build_model
from m3p.model.m3p import M3P
from m3p.objectives.tasks.contrastive import ContrastiveHead
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.retrieval.scoring import Scorer
from m3p.training.build_objectives import build_objectives
from m3p.training.text_centre import SAMPLES, measure_text_centre


def build(recipe: Recipe) -> M3P:
    return build_model(recipe.model, 64, recipe.visual, recipe.tasks, seed=0)


def centre_of(model: M3P) -> torch.Tensor:
    head = model.heads["contrastive"]
    assert isinstance(head, ContrastiveHead)
    assert head.centre is not None
    assert not head.centre.requires_grad
    return head.centre.detach()


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_what_captions_have_in_common_is_taken_away(tiny: Path, pooling: str) -> None:
    recipe = load_recipe(
        tiny, ["model.text_centre=true", f"model.pooling={pooling}", "objectives.code_switched.weight=0"]
    )
    objectives, model = build_objectives(recipe), build(recipe).train()
    measure_text_centre(model, objectives.values())
    assert model.training
    objective = objectives["image_caption"]
    texts = [objective.text(sample).text for sample in objective.mix.read_many(range(SAMPLES))]
    plain = build(load_recipe(tiny, [f"model.pooling={pooling}"])).eval()
    scorer = Scorer(plain, objective.context.tokenizer, 32, 64)
    head = plain.heads["contrastive"]
    assert isinstance(head, ContrastiveHead)
    head.text = torch.nn.Identity()  # type: ignore[assignment]  # then a text's embedding is its pooled state, of unit length
    mean = scorer.embed_texts(texts).mean(0)
    assert np.linalg.norm(mean) > 0.5  # there is something to take away
    np.testing.assert_allclose(centre_of(model), -mean, atol=1e-5)


def test_a_head_with_a_centre_keeps_it_and_one_without_gets_none(tiny: Path) -> None:
    recipe = load_recipe(tiny, ["model.text_centre=true"])
    objectives, model = build_objectives(recipe), build(recipe)
    with torch.no_grad():
        centre_of(model).fill_(0.25)
    measure_text_centre(model, objectives.values())
    assert centre_of(model).eq(0.25).all()
    plain = build(load_recipe(tiny))
    measure_text_centre(plain, objectives.values())
    assert "heads.contrastive.centre" not in plain.state_dict()


@pytest.mark.long
def test_captions_are_those_that_the_task_sees(tiny: Path) -> None:
    """Of two objectives, those of both; of code-switched ones, switched."""
    recipe = load_recipe(tiny, ["model.text_centre=true"])
    objectives = build_objectives(recipe)
    found = []
    for names in (["image_caption"], ["code_switched"], ["multilingual_text", "image_caption", "code_switched"]):
        model = build(recipe)
        measure_text_centre(model, [objectives[name] for name in names])
        found.append(centre_of(model))
    assert not torch.allclose(found[0], found[1], atol=1e-4)
    torch.testing.assert_close(found[2], (found[0] + found[1]) / 2)
    assert F.cosine_similarity(found[0], found[1], dim=0) > 0
