"""Runs stand beside published figures only where they were measured alike."""

import io
from typing import Any

import pytest

from m3p.console import PlainConsole
from m3p.errors import UserError
from m3p.keys import generator
from m3p.retrieval.metrics import rank_both_ways
from m3p.retrieval.protocols import PROTOCOLS
from m3p.retrieval.published import beside_published, load_published, published_names, results_of
from m3p.retrieval.result import Conditions, Evaluation

ORIGIN = {"set": "multi30k", "task": "2", "split": "test_2016_flickr"}


@pytest.fixture(scope="module")
def native() -> Evaluation:
    """A result as from Multi30K, five captions a picture in English and German; small, and said to be of 1,000 pictures."""
    records = [
        {"id": f"{n:04}", "captions": {code: [f"{code} {k} {n}" for k in range(5)] for code in ("en", "de")}}
        for n in range(40)
    ]
    pool = PROTOCOLS["native"].pool(records, ["en", "de"])
    rng, found = generator("test", "published"), {}
    for language in pool.captions:
        right = pool.right(language)
        found[language] = rank_both_ways(rng.normal(size=right.shape) + 2 * right, right)
    given = {"dataset": "d", "split": "test", "scoring": "dual", "system": "mine", "seed": 0, "origin": ORIGIN}
    result = Evaluation.of(pool, found, Conditions(**{**given, "captioned_languages": ["en"]}))
    languages = {code: one.model_copy(update={"captioned_images": 1000}) for code, one in result.languages.items()}
    return result.model_copy(update={"images": 1000, "languages": languages})


def shown(results: list[tuple[str, Evaluation]], name: str = "multi30k") -> str:
    console = PlainConsole(file=io.StringIO(), width=200)
    for table in beside_published(name, results):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_shipped_number_has_its_source_and_its_column() -> None:
    assert {"multi30k", "coco", "xflickrco", "xtd", "xm3600"} == set(published_names())
    for name in published_names():
        for board in load_published(name).boards:
            assert board.note
            assert board.rows
            for row in board.rows:
                assert row.source
                assert row.values
                assert all(0 < value <= (600 if board.figure == "rsum" else 100) for value in row.values.values())


def test_some_numbers_of_the_tables() -> None:
    first = load_published("multi30k").boards[0]
    assert first.rows[0].values == {"en": 87.4, "de": 58.5, "fr": 46.0, "cs": 36.8}
    found = {row.system: row.values for row in load_published("xflickrco").boards[0].rows}
    assert (found["M3P"]["mean of 7"], found["M3P"]["tr"]) == (12.91, 7.75)


def test_a_run_stands_where_pool_and_protocol_are_the_published_ones(native: Evaluation) -> None:
    text = shown([("mine, test", native)])
    row = next(line for line in text.splitlines() if line.strip("│ ").startswith("mine, test"))
    assert f"{native.languages['en'].mean_recall:.1f} (" in row
    assert "not here: mine, test: protocol native, there m3p-compat" in text
    assert "not here: mine, test: 5.00 captions a picture in de, there 1" in text
    assert "protocol of the published figures not known" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"origin": {}}, r"set not recorded by its shards \(m3p prepare writes it\), there multi30k"),
        ({"origin": {**ORIGIN, "set": "coco"}}, "set coco, there multi30k"),
        ({"origin": {**ORIGIN, "split": "val"}}, "split val, there test_2016_flickr or"),
        ({"images": 100}, "pool of 100 pictures, there 1,000"),
        ({"pictures_seen": 3}, "training saw the pictures of 3 of its samples"),
        ({"caption_source": "machine translation"}, "captions translated by a program, there by people"),
        ({"centre": "captions"}, "queries centred by captions of their language, there as they are"),
    ],
)
def test_other_conditions_are_refused_with_what_differs(
    native: Evaluation, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"no result was measured as a column .* mine: .*{message}"):
        beside_published("multi30k", [("mine", native.model_copy(update=changes))])


def test_another_number_of_captions_is_refused(native: Evaluation) -> None:
    languages = {name: one.model_copy(update={"captions_per_image": 2.0}) for name, one in native.languages.items()}
    with pytest.raises(UserError, match=r"2\.00 captions a picture in .., there [15]"):
        beside_published("multi30k", [("mine", native.model_copy(update={"languages": languages}))])


def test_a_language_that_fewer_pictures_have_captions_in_is_refused(native: Evaluation) -> None:
    languages = {name: one.model_copy(update={"captioned_images": 970}) for name, one in native.languages.items()}
    cut = native.model_copy(update={"languages": languages})
    assert "not here: cut: only 970 of 1,000 pictures have a caption in en" in shown([("cut", cut), ("mine", native)])


def test_runs_that_differ_in_their_seed_get_their_mean(native: Evaluation) -> None:
    text = shown([("a", native), ("b", native.model_copy(update={"seed": 1}))])
    assert "mean of 2 seeds" in text
    assert "mean of 2" not in shown([("a", native), ("b", native)]), "one seed twice is no mean over seeds"


def test_an_unknown_table_is_named(native: Evaluation) -> None:
    with pytest.raises(UserError, match="no table of that name comes with the program; take one of coco, multi30k"):
        beside_published("flickr", [("a", native)])


def test_results_of_a_run_are_all_in_its_folder(native: Evaluation, tmp_path: Any) -> None:
    native = native.model_copy(update={"images": 40})
    native.save(tmp_path / "evaluation" / "test.json")
    ((name, found),) = results_of([tmp_path])
    assert (name, found) == ("mine, test (dual)", native)
    native.model_copy(update={"selection_split": "test"}).save(tmp_path / "evaluation" / "test.json")
    assert results_of([tmp_path])[0][0] == "mine, test (dual, checkpoint chosen on it)"
    with pytest.raises(UserError, match=r"it holds no evaluation/NAME\.json"):
        results_of([tmp_path / "evaluation"])
