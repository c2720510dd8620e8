"""Many pairs are scored as single ones are, whatever the blocks."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from m3p.batch import Picture
from m3p.data.sample import BadSamples
from m3p.data.source import Source, SourceConfig
from m3p.data.tokenizer import Tokenizer
from m3p.model.build import build_model
from m3p.recipe.recipe import Recipe
from m3p.retrieval import cross
from m3p.retrieval.blocks import Blocks
from m3p.retrieval.cross import PairMatcher, WantedPairs
from m3p.retrieval.scoring import Scorer

TEXTS = {"en": ["dog cat", "moon", "stone bread river", "bird"], "de": ["Hund", "Haus Haus Haus"]}


@pytest.fixture(scope="module")
def scorer(tiny_recipe: Recipe, tokenizer: Tokenizer) -> Scorer:
    model = build_model(tiny_recipe.model, tokenizer.size, tiny_recipe.visual, tiny_recipe.tasks, seed=0).eval()
    return Scorer(model, tokenizer, 32, 3)


@pytest.fixture(scope="module")
def pictures(tiny_recipe: Recipe) -> list[Picture]:
    assert tiny_recipe.visual is not None
    path = tiny_recipe.evaluation["train"].path
    source = Source(Path(path), SourceConfig(path=path), (0, "train", 0), 1, tiny_recipe.visual.load)
    return [source.read(place, BadSamples([])).picture for place in range(7)]


def some_pairs() -> dict[str, NDArray[np.int64]]:
    """(picture, caption), in no order, some twice; picture 3 has none."""
    return {
        "en": np.array([[6, 0], [0, 3], [0, 1], [6, 0], [2, 2]]),
        "de": np.array([[5, 1], [0, 0], [4, 0], [5, 0]]),
    }


@pytest.mark.long
@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_listed_pairs_are_scored_as_single_ones_whatever_the_blocks(
    scorer: Scorer, pictures: list[Picture], tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross, "PICTURES_AT_ONCE", 2)
    wanted = {language: WantedPairs.listed(pairs, len(pictures)) for language, pairs in some_pairs().items()}
    captions = {language: scorer.tokenize(texts) for language, texts in TEXTS.items()}
    parts = PairMatcher(scorer, captions, pictures, wanted).match(Blocks(tmp_path / "blocks"), limit)
    for language, pairs in some_pairs().items():
        logits = np.concatenate(parts[language])
        assert len(logits) == len(np.unique(pairs, axis=0))
        alone = scorer.match(TEXTS[language], pictures, pairs[:, ::-1])
        found = logits[wanted[language].find(pairs[:, 0], pairs[:, 1])]
        np.testing.assert_allclose(found, alone, atol=1e-5)


@pytest.mark.long
def test_all_pairs_and_all_pairs_of_each_part(scorer: Scorer, pictures: list[Picture], tmp_path: Path) -> None:
    captions, every = {"en": scorer.tokenize(TEXTS["en"])}, np.arange(4)
    table = scorer.match(TEXTS["en"], pictures, np.array([[c, n] for n in range(7) for c in range(4)])).reshape(7, 4)
    whole = {"en": WantedPairs.every([(np.arange(7), every)], 7)}
    found = np.concatenate(PairMatcher(scorer, captions, pictures, whole).match(Blocks(tmp_path / "whole"), 9)["en"])
    np.testing.assert_allclose(found.reshape(7, 4), table, atol=1e-5)
    halves = {"en": WantedPairs.every([(np.arange(3), every[:1]), (np.arange(3, 7), every[2:])], 7)}
    found = np.concatenate(PairMatcher(scorer, captions, pictures, halves).match(Blocks(tmp_path / "halves"), 9)["en"])
    np.testing.assert_allclose(found, np.concatenate([table[:3, 0], table[3:, 2:].ravel()]), atol=1e-5)


def test_passes_and_time_are_said_before_it_starts(
    scorer: Scorer,
    pictures: list[Picture],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cross, "WORTH_AN_ESTIMATE", 20)
    monkeypatch.setattr(PairMatcher, "pairs_per_second", lambda self: 0.1)
    captions, whole = {"en": scorer.tokenize(TEXTS["en"])}, {"en": WantedPairs.every([(np.arange(7), np.arange(4))], 7)}
    PairMatcher(scorer, captions, pictures, whole).match(Blocks(tmp_path / "blocks"), 8)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "cross-encoder: 28 passes, one for each pair of caption and picture; about 5 min at 0 a second"
    )
    (tmp_path / "blocks" / "cross-encoder-000001.npy").unlink()
    PairMatcher(scorer, captions, pictures, whole).match(Blocks(tmp_path / "blocks"), 8)
    assert "8 passes, one for each pair of caption and picture; 20 were done before" in capsys.readouterr().out


@pytest.mark.long
def test_the_speed_that_the_estimate_is_made_of_is_measured(scorer: Scorer, pictures: list[Picture]) -> None:
    whole = {"en": WantedPairs.every([(np.arange(7), np.arange(4))], 7)}
    assert PairMatcher(scorer, {"en": scorer.tokenize(TEXTS["en"])}, pictures, whole).pairs_per_second() > 1
