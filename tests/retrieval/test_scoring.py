"""The scorer reads the network as training does: the same sequences, the same heads, whatever the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3p.batch import Batch, Picture
from m3p.data.sample import BadSamples
from m3p.data.tokenizer import Tokenizer
from m3p.model.build import build_model
from m3p.model.m3p import M3P
from m3p.objectives.image_caption import ImageCaption
from m3p.objectives.objective import Context
from m3p.recipe.recipe import Recipe
from m3p.retrieval.scoring import Scorer, shortlist

TURN = range(9)


@pytest.fixture(scope="module", params=["first", "mean"])
def model(request: pytest.FixtureRequest, tiny_recipe: Recipe, tokenizer: Tokenizer) -> M3P:
    config = tiny_recipe.model.model_copy(update={"pooling": request.param, "projection": 12})
    built = build_model(config, tokenizer.size, tiny_recipe.visual, tiny_recipe.tasks, seed=0).eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.ndim > 1 and not name.startswith("text."):
                parameter.mul_(4)  # as far apart as trained ones
    return built


@pytest.fixture(scope="module")
def objective(tiny_recipe: Recipe, tokenizer: Tokenizer) -> ImageCaption:
    """Nothing masked: matching and contrast alone."""
    fields = tiny_recipe.active_objectives["image_caption"]
    fields = fields.model_copy(update={"tasks": {"matching": 1.0, "contrastive": 1.0}})
    built = fields.build(Context("image_caption", 0, tokenizer, tiny_recipe.visual, 2))
    assert isinstance(built, ImageCaption)
    return built


@pytest.fixture(scope="module")
def batch(objective: ImageCaption) -> Batch:
    return objective.batch(TURN, TURN)


@pytest.fixture(scope="module")
def pairs(objective: ImageCaption) -> tuple[list[str], list[Picture]]:
    samples = [objective.mix.read(position, BadSamples([])) for position in TURN]
    pictures = [sample.visual for sample in samples if sample.visual is not None]
    assert len(pictures) == len(TURN)
    return [objective.text(sample).text for sample in samples], pictures


def scorer(model: M3P, tokenizer: Tokenizer, batch_size: int) -> Scorer:
    return Scorer(model, tokenizer, 32, batch_size)


def test_cosines_are_the_logits_of_training_without_the_temperature(
    model: M3P, tokenizer: Tokenizer, batch: Batch, pairs: tuple[list[str], list[Picture]]
) -> None:
    with torch.inference_mode():
        text, image = model(batch).tasks["contrastive"].chunk(2)
        trained = (text @ image.T).numpy()
    scale = model.get_parameter("heads.contrastive.log_scale").exp().item()
    scoring = scorer(model, tokenizer, 4)
    found = scoring.embed_texts(pairs[0]) @ scoring.embed_pictures(pairs[1]).T
    np.testing.assert_allclose(found * scale, trained, atol=2e-5)


def test_matching_is_the_logit_of_training(
    model: M3P, tokenizer: Tokenizer, batch: Batch, pairs: tuple[list[str], list[Picture]]
) -> None:
    with torch.inference_mode():
        trained = model(batch).tasks["matching"][batch.targets["matching"]["labels"] == 1].numpy()
    assert trained.std() > 1e-3
    every = np.array([[place, place] for place in TURN])
    np.testing.assert_allclose(scorer(model, tokenizer, 4).match(*pairs, every), trained, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("size", [1, 2, 5])
def test_nothing_depends_on_the_batch_size(
    model: M3P, tokenizer: Tokenizer, pairs: tuple[list[str], list[Picture]], size: int
) -> None:
    one, other = scorer(model, tokenizer, size), scorer(model, tokenizer, 100)
    texts, pictures = pairs
    every = np.array([[caption, picture] for caption in (0, 3) for picture in TURN])
    np.testing.assert_allclose(one.embed_texts(texts), other.embed_texts(texts), atol=1e-6)
    np.testing.assert_allclose(one.embed_pictures(pictures), other.embed_pictures(pictures), atol=1e-6)
    np.testing.assert_allclose(one.match(texts, pictures, every), other.match(texts, pictures, every), atol=1e-6)


def test_pairs_are_scored_in_the_order_that_they_are_asked_in(
    model: M3P, tokenizer: Tokenizer, pairs: tuple[list[str], list[Picture]]
) -> None:
    scoring, asked = scorer(model, tokenizer, 2), np.array([[2, 0], [0, 5], [2, 0], [1, 1]])
    found = scoring.match(*pairs, asked)
    alone = [scoring.match(*pairs, asked[[row]])[0] for row in range(4)]
    np.testing.assert_allclose(found, alone, atol=1e-6)
    assert found[0] == pytest.approx(found[2], abs=1e-6)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**31))
def test_a_shortlist_holds_the_best_of_each_query_in_order(queries: int, pool: int, limit: int, seed: int) -> None:
    scores = np.random.default_rng(seed).permutation(queries * pool).reshape(queries, pool).astype(np.float32)
    wanted = np.argsort(-scores, axis=1)[:, :limit]
    assert np.array_equal(shortlist(scores, limit), wanted)
