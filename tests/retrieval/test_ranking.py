"""Every way to score a gallery gives the ranks that its scores, pair by pair, give; also after a kill."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from m3p.data.tokenizer import Tokenizer
from m3p.model.build import build_model
from m3p.recipe.recipe import Recipe
from m3p.retrieval import cross
from m3p.retrieval.blocks import Blocks
from m3p.retrieval.metrics import query_ranks
from m3p.retrieval.pictures import Pictures, load_pictures
from m3p.retrieval.pool import Pool
from m3p.retrieval.ranking import Ranker, Way
from m3p.retrieval.scoring import Scorer

Table = NDArray[np.float32]


@pytest.fixture(scope="module")
def scorer(tiny_recipe: Recipe, tokenizer: Tokenizer) -> Scorer:
    model = build_model(tiny_recipe.model, tokenizer.size, tiny_recipe.visual, tiny_recipe.tasks, seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.startswith("text."):
                parameter.mul_(4)  # as far apart as trained ones
    return Scorer(model, tokenizer, 32, 5)


@pytest.fixture(scope="module")
def pictures(tiny_recipe: Recipe) -> Pictures:
    """The tiny gallery in two languages, with some captions twice and one picture that has none in German."""
    found = load_pictures(tiny_recipe, "train", tiny_recipe.evaluation["train"])
    texts = {code: [caption.text for caption in found.pool.captions[code]] for code in ("en", "de")}
    records = [
        {"id": image, "captions": {"en": [texts["en"][n]] * (1 + n % 2), "de": [texts["de"][n]] * (n != 3)}}
        for n, image in enumerate(found.pool.images)
    ]
    return replace(found, pool=Pool.of(records, ["en", "de"], merge=False))


def tables(scorer: Scorer, pictures: Pictures, language: str) -> tuple[Table, Table]:
    """Cosines and logits of all pairs, [N, C] each; captions of one text have one score."""
    every = [caption.text for caption in pictures.pool.captions[language]]
    texts = list(dict.fromkeys(every))
    columns = [texts.index(text) for text in every]
    cosines = scorer.embed_pictures(pictures.visuals) @ scorer.embed_texts(texts).T
    pairs = np.array([[c, n] for n in range(len(pictures.visuals)) for c in range(len(texts))])
    return cosines[:, columns], scorer.match(texts, pictures.visuals, pairs).reshape(cosines.shape)[:, columns]


def wanted(way: Way, cosines: Table, logits: Table) -> tuple[Table, Table]:
    """The scores [C, N] and [N, C] that a way ranks by."""
    scores = cosines if way.scoring == "dual" else logits + np.float32(way.dual_weight) * cosines
    if way.scoring != "rerank":
        return scores.T, scores
    both = []
    for given, first in ((scores.T, cosines.T), (scores, cosines)):
        kept = np.argsort(-first, axis=1)[:, : way.shortlist]
        listed = np.full(given.shape, -np.inf, np.float32)
        np.put_along_axis(listed, kept, np.take_along_axis(given, kept, 1), 1)
        both.append(listed)
    return both[0], both[1]


@pytest.mark.long
@pytest.mark.parametrize(
    "way", [Way("dual"), Way("cross"), Way("rerank", 6), Way("cross", dual_weight=2.0), Way("rerank", 6, 2.0)], ids=str
)
def test_ranks_are_those_of_the_scores_pair_by_pair(
    scorer: Scorer, pictures: Pictures, tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross, "PICTURES_AT_ONCE", 4)
    saved = tmp_path / "scores"
    found = Ranker(scorer, pictures, way, Blocks(tmp_path / "blocks"), shown=2, saved=saved).rank()
    for language in ("en", "de"):
        right = pictures.pool.right(language)
        to_images, to_texts = wanted(way, *tables(scorer, pictures, language))
        with np.load(saved / f"{language}.npz", allow_pickle=False) as kept:
            scores = kept["scores"]
            assert kept["picture_ids"].tolist() == pictures.pool.images
            assert kept["captions"].tolist() == [caption.text for caption in pictures.pool.captions[language]]
            assert len(set(kept["caption_ids"].tolist())) == len(scores.T)
        both = np.where(np.isfinite(to_texts), to_texts, to_images.T)
        alike = np.isclose(scores, both, atol=1e-4) | (np.isnan(scores) & np.isneginf(both))
        assert alike.mean() > 0.97, "the border of a shortlist may turn on the last bits of a float, and nothing else"
        if way.scoring != "rerank":
            assert alike.all()
            assert np.array_equal(found.ranks[language].text_to_image, query_ranks(scores.T, right.T))
            assert np.array_equal(found.ranks[language].image_to_text, query_ranks(scores, right))
        assert same(found.ranks[language].text_to_image, query_ranks(to_images, right.T))
        assert same(found.ranks[language].image_to_text, query_ranks(to_texts, right))
    assert len(found.found) == 4
    assert found.passes == (0 if way.scoring == "dual" else found.passes)


def same(found: NDArray[np.int64], expected: NDArray[np.int64]) -> bool:
    """Batches of other sizes give floats that differ in the last bits, so that near ties may turn."""
    return float((np.abs(found - expected) <= 2).mean()) > 0.9


@pytest.mark.long
def test_folds_are_ranked_apart(scorer: Scorer, pictures: Pictures, tmp_path: Path) -> None:
    pool = replace(pictures.pool, folds=[2 * n // len(pictures.pool.images) for n in range(len(pictures.pool.images))])
    found = Ranker(scorer, replace(pictures, pool=pool), Way("cross"), Blocks(tmp_path / "blocks")).rank()
    _, logits = tables(scorer, pictures, "en")
    for images, captions in pool.parts("en"):
        part = np.ix_(images, captions)
        right = pool.right("en")[part]
        assert same(found.ranks["en"].text_to_image[captions], query_ranks(logits[part].T, right.T))
        assert same(found.ranks["en"].image_to_text[images], query_ranks(logits[part], right))
    assert found.passes < logits.size


def test_scores_of_a_language_of_strangers_stay_in_their_folder(
    scorer: Scorer, pictures: Pictures, tmp_path: Path
) -> None:
    captions = {"../../evil": pictures.pool.captions["en"]}
    pool = replace(pictures.pool, captions=captions)
    saved = tmp_path / "run" / "evaluation" / "dev.scores"
    Ranker(scorer, replace(pictures, pool=pool), Way("dual"), Blocks(tmp_path / "blocks"), saved=saved).rank()
    assert [path.name for path in saved.iterdir()] == ["%2E%2E%2F%2E%2E%2Fevil.npz"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["evaluation"]


class Killed(Exception):
    pass


@pytest.mark.long
def test_killed_half_way_and_gone_on_with_is_one_go(
    scorer: Scorer, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross, "PICTURES_AT_ONCE", 3)
    monkeypatch.setattr("m3p.retrieval.ranking.EMBEDDED_OF_A_BLOCK", 7)
    monkeypatch.setattr(cross.PairMatcher.match, "__defaults__", (100,))
    way = Way("rerank", 5, 0.5)
    whole = Ranker(scorer, pictures, way, Blocks(tmp_path / "whole"), saved=tmp_path / "a").rank()
    match, calls = Scorer.match_embedded, []

    def until_killed(*given: Any) -> Any:
        calls.append(given)
        if len(calls) > 9:
            raise Killed
        return match(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "match_embedded", until_killed)
        with pytest.raises(Killed):
            Ranker(scorer, pictures, way, Blocks(tmp_path / "blocks"), saved=tmp_path / "b").rank()
    left = len(list((tmp_path / "blocks").glob("cross-encoder-*.npy")))
    assert 0 < left < len(list((tmp_path / "whole").glob("cross-encoder-*.npy")))
    calls.clear()

    def counted(*given: Any) -> Any:
        calls.append(given)
        return match(*given)

    monkeypatch.setattr(Scorer, "match_embedded", counted)
    again = Ranker(scorer, pictures, way, Blocks(tmp_path / "blocks"), saved=tmp_path / "b").rank()
    assert calls, "what was left is scored"
    assert again.passes == whole.passes
    for language in ("en", "de"):
        assert np.array_equal(again.ranks[language].text_to_image, whole.ranks[language].text_to_image)
        a, b = ((np.load(tmp_path / name / f"{language}.npz", allow_pickle=False)["scores"]) for name in ("a", "b"))
        np.testing.assert_array_equal(a, b)
