"""Queries are moved by the mean of other captions of their language, and results say so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.model.build import build_model
from m3p.recipe.load import load_recipe
from m3p.recipe.recipe import Recipe
from m3p.retrieval import centres
from m3p.retrieval.blocks import Blocks
from m3p.retrieval.centres import language_centres, move
from m3p.retrieval.evaluate import Options, evaluate_run
from m3p.retrieval.pictures import check_evaluations, load_pictures
from m3p.retrieval.ranking import Ranker, Way
from m3p.retrieval.scoring import Scorer
from tests.test_export import write_run


@pytest.fixture(scope="module")
def scorer(tiny_recipe: Recipe, tokenizer: Tokenizer) -> Scorer:
    model = build_model(tiny_recipe.model, tokenizer.size, tiny_recipe.visual, tiny_recipe.tasks, seed=0).eval()
    return Scorer(model, tokenizer, 32, 8)


def test_the_centre_is_the_mean_of_different_captions(
    tiny_recipe: Recipe, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_recipe.evaluation["train"].path
    pool = load_pictures(tiny_recipe, "train", tiny_recipe.evaluation["train"]).pool
    texts = sorted({caption.text for caption in pool.captions["de"]})
    found = language_centres("train", path, ["de", "en"], scorer)
    assert list(found) == ["de", "en"]
    np.testing.assert_allclose(found["de"], scorer.embed_texts(texts).mean(0), atol=1e-6)
    monkeypatch.setattr(centres, "TEXTS", 16)
    fewer = language_centres("train", path, ["de"], scorer)["de"]
    assert 1e-4 < np.abs(fewer - found["de"]).max() < 0.5


def test_every_query_is_moved_before_it_is_ranked(tiny_recipe: Recipe, scorer: Scorer, tmp_path: Path) -> None:
    pictures = load_pictures(tiny_recipe, "train", tiny_recipe.evaluation["train"])
    pictures = replace(pictures, pool=replace(pictures.pool, captions={"de": pictures.pool.captions["de"]}))
    centre = language_centres("train", tiny_recipe.evaluation["train"].path, ["de"], scorer)
    ranker = Ranker(scorer, pictures, Way("dual"), Blocks(tmp_path / "blocks"), saved=tmp_path, centres=centre)
    ranker.rank()
    queries = scorer.embed_texts([caption.text for caption in pictures.pool.captions["de"]]) - centre["de"]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    with np.load(tmp_path / "de.npz", allow_pickle=False) as saved:
        np.testing.assert_allclose(saved["scores"], scorer.embed_pictures(pictures.visuals) @ queries.T, atol=1e-5)


def test_a_moved_query_has_unit_length_also_where_nothing_is_left() -> None:
    moved = move(np.array([[1, 0], [0, 1]], np.float32), np.array([1, 0], np.float32))
    np.testing.assert_allclose(moved, [[0, 0], [-(0.5**0.5), 0.5**0.5]], atol=1e-6)


@pytest.mark.long
def test_results_say_by_which_captions(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = load_recipe(tiny).evaluation["train"].path
    write_run(tiny, tmp_path / "run", f"evaluation.train.centre={path}")
    (dual,) = evaluate_run(tmp_path / "run")
    assert dual.centre == path
    assert "queries moved by the mean of captions" in " ".join(capsys.readouterr().out.split())
    (cross,) = evaluate_run(tmp_path / "run", options=Options(scoring="cross"))
    assert cross.centre is None  # there is no embedding to move


@pytest.mark.parametrize(
    ("path", "languages", "message"),
    [
        ("nowhere", ["de"], r"evaluation.train.centre: nowhere"),
        (None, ["de", "fr"], r"evaluation.train.centre = .*: 0 different captions in fr, and 16 are needed"),
    ],
)
def test_captions_that_are_not_there_are_said(
    tiny_recipe: Recipe, scorer: Scorer, path: str | None, languages: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        language_centres("train", path or tiny_recipe.evaluation["train"].path, languages, scorer)


def test_a_folder_without_captions_is_said_before_training(tiny: Path) -> None:
    text = load_recipe(tiny).active_objectives["multilingual_text"]
    recipe = load_recipe(tiny, [f"evaluation.train.centre={Path(text.sources[0].path).parent / 'en'}"])
    with pytest.raises(UserError, match=r"evaluation.train.centre: .*captions"):
        check_evaluations(recipe)
