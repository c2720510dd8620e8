import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from m3p.errors import UserError
from m3p.keys import generator
from m3p.retrieval.metrics import QueryRanks, chance, rank_both_ways, recalls
from m3p.retrieval.pool import Pool
from m3p.retrieval.result import Evaluation, Shortlist
from tests.retrieval.results import RECORDS, conditions, evaluation


def test_holds_what_makes_a_number_comparable() -> None:
    result = evaluation()
    assert (result.images, result.captions) == (40, 40 + 40 + 80)
    english, czech = result.languages["en"], result.languages["cs"]
    assert (english.captions, english.captions_per_image, english.captioned_images) == (40, 1, 40)
    assert (czech.captions, czech.captions_per_image) == (80, 2)
    assert english.chance == pytest.approx(chance(np.eye(40, dtype=bool)), abs=1e-4)
    assert [(found.text, found.concepts) for found in english.identical_captions] == [
        ("dog", ["picture-00", "picture-02"])
    ]
    means = [one.mean_recall for one in result.languages.values()]
    assert result.mean.mean_recall == pytest.approx(np.mean(means), abs=1e-3)
    assert result.mean_never_captioned is not None
    assert result.mean_never_captioned.mean_recall == pytest.approx(np.mean(means[1:]), abs=1e-3)
    assert result.mean.interval[0] < result.mean.mean_recall < result.mean.interval[1]


def test_holds_other_figures_of_the_same_ranks() -> None:
    result = evaluation()
    english = result.languages["en"]
    assert english.rsum == pytest.approx(
        sum([*english.text_to_image.values(), *english.image_to_text.values()]), abs=1e-3
    )
    assert english.mteb is not None
    assert english.mteb["text_to_image"]["hit@1"] == english.text_to_image["R@1"]
    ranks = np.array(english.text_to_image_ranks)
    gains = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0)
    assert english.mteb["text_to_image"]["nDCG@10"] == pytest.approx(100 * gains.mean(), abs=1e-3)
    assert english.interval_over_queries is not None
    assert english.interval_over_queries[0] < english.mean_recall < english.interval_over_queries[1]
    fair, means = result.fairness, {name: one.mean_recall for name, one in result.languages.items()}
    assert fair is not None
    assert (means[fair.best], means[fair.worst]) == (max(means.values()), min(means.values()))
    assert fair.gap == pytest.approx(max(means.values()) - min(means.values()), abs=1e-3)
    assert fair.image_to_text is not None
    assert fair.image_to_text.instances == 40
    table = np.array([one.image_to_text_ranks for one in result.languages.values()])
    assert fair.image_to_text.rank_std == pytest.approx(table.std(axis=0).mean(), abs=1e-3)


def test_figures_of_folds_are_means_over_folds() -> None:
    records = [
        *RECORDS[:6],
        {**RECORDS[6], "captions": {"en": ["only one"], "de": ["a", "b"], "cs": ["c"]}},
        *RECORDS[7:],
    ]
    pool = Pool.of(records, ["en", "de"], merge=False, folds=2)
    found = {}
    for language in ("en", "de"):
        right = pool.right(language)
        scores = generator("folds", language).normal(size=right.shape) + right
        ranks = QueryRanks(np.zeros(right.shape[1], np.int64), np.zeros(right.shape[0], np.int64))
        for images, captions in pool.parts(language):
            part = np.ix_(images, captions)
            one = rank_both_ways(scores[part], right[part])
            ranks.text_to_image[captions], ranks.image_to_text[images] = one.text_to_image, one.image_to_text
        found[language] = ranks
    result = Evaluation.of(pool, found, conditions())
    parts = [(found["de"].text_to_image[texts] <= 5).mean() for _, texts in pool.parts("de")]
    assert result.languages["de"].text_to_image["R@5"] == pytest.approx(100 * np.mean(parts), abs=1e-3)
    low, high = result.languages["de"].interval
    assert low < result.languages["de"].mean_recall < high
    assert sorted(set(result.image_folds)) == [0, 1]
    assert result.mean.mean_recall == pytest.approx(
        np.mean([one.mean_recall for one in result.languages.values()]), abs=1e-3
    )
    assert list(result.grouped(["de"])) == ["de, fold 1", "de, fold 2"]


def test_stored_ranks_give_the_stored_recalls() -> None:
    for result in evaluation().languages.values():
        found = QueryRanks(np.array(result.text_to_image_ranks), np.array(result.image_to_text_ranks))
        assert recalls(found)["mean_recall"] == pytest.approx(result.mean_recall, abs=1e-3)


def test_no_mean_where_every_language_was_captioned() -> None:
    for captioned in (["en", "de", "cs"], ["en-GB", "DE", "cs-CZ"]):
        assert evaluation(captioned_languages=captioned).mean_never_captioned is None


def test_file_has_the_names_that_other_tools_rely_on_and_comes_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "evaluation" / "dev.json"
    result = evaluation()
    result.save(path)
    assert Evaluation.load(path) == result
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert {"protocol", "split", "scoring", "images", "captions", "languages"} <= set(stored)
    german = stored["languages"]["de"]
    assert list(german["text_to_image"]) == list(german["image_to_text"]) == ["R@1", "R@5", "R@10"]
    assert 0 <= german["mean_recall"] <= 100
    assert len(path.read_text(encoding="utf-8").splitlines()) < 200, "lists of ranks take one line each"


def test_load_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Evaluation.load(tmp_path / "absent.json")
    (tmp_path / "other.json").write_text('{"dataset": "toys"}')
    with pytest.raises(UserError, match=r"other\.json: not an evaluation.*split"):
        Evaluation.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (["image_groups"], "image_groups holds 39 numbers, want 40; evaluate again"),
        (["languages", "cs", "caption_groups"], r"languages\.cs\.caption_groups holds 79 numbers, want 80"),
        (["languages", "de", "text_to_image_ranks"], r"languages\.de\.text_to_image_ranks holds 39 numbers, want 40"),
        (["languages", "de", "image_to_text_ranks"], r"languages\.de\.image_to_text_ranks holds 39 numbers, want 40"),
    ],
)
def test_a_list_that_was_shortened_is_refused(tmp_path: Path, place: list[str], message: str) -> None:
    stored = json.loads(evaluation().model_dump_json())
    node = stored
    for part in place:
        node = node[part]
    node.pop()
    (tmp_path / "cut.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=rf"cut\.json: .* the file: {message}"):
        Evaluation.load(tmp_path / "cut.json")


def test_a_shortlist_goes_with_its_scoring() -> None:
    kept = Shortlist(k=10, recall={"en": 80.0})
    assert conditions(scoring="dual+cross", shortlist=kept).shortlist == kept
    for wrong in ({"scoring": "dual+cross"}, {"scoring": "cross", "shortlist": kept}):
        with pytest.raises(ValidationError, match="shortlist is given with"):
            conditions(**wrong)
