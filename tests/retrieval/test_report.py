import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from m3p.console import PlainConsole
from m3p.errors import UserError
from m3p.keys import generator
from m3p.retrieval.metrics import Pool, QueryRanks, chance, ranks, recalls
from m3p.retrieval.report import (
    Conditions,
    Evaluation,
    Shortlist,
    compare,
    differences,
    print_table,
    write_tensorboard,
)

WORDS = ["dog", "cat [1,\n 2]", "dog"] + [f"thing {number}" for number in range(37)]
RECORDS: list[dict[str, Any]] = [
    {"id": f"picture-{place:02}", "captions": {"en": text, "de": f"ein {text}", "cs": [text, f"{text} zwei"]}}
    for place, text in enumerate(WORDS)
]


def conditions(**changes: Any) -> Conditions:
    given = {"dataset": "toys", "split": "dev", "scoring": "dual", "caption_source": "human", "system": "run-1"}
    return Conditions(**{**given, "captioned_languages": ["en"], "step": 7, "seed": 1, **changes})


def evaluation(noise: float = 1.0, records: list[dict[str, Any]] = RECORDS, **changes: Any) -> Evaluation:
    """Scores that belong to the picture and the caption, whatever their places in the pool."""
    pool = Pool.of(records, ["en", "de", "cs"])
    found = {}
    for language, captions in pool.captions.items():
        scores = [
            [generator(image, caption.concept, caption.text, language).normal() for caption in captions]
            for image in pool.images
        ]
        found[language] = ranks(noise * np.array(scores) + pool.right(language), pool.right(language))
    return Evaluation.of(pool, found, conditions(**changes))


def printed(what: Any) -> str:
    console = PlainConsole(file=io.StringIO(), width=80)
    if isinstance(what, Evaluation):
        print_table(what, console)
    else:
        console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


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


def test_stored_ranks_give_the_stored_recalls() -> None:
    for result in evaluation().languages.values():
        found = QueryRanks(np.array(result.text_to_image_ranks), np.array(result.image_to_text_ranks))
        assert recalls(found)["mean_recall"] == pytest.approx(result.mean_recall, abs=1e-3)


def test_no_mean_where_every_language_was_captioned() -> None:
    assert evaluation(captioned_languages=["en", "de", "cs"]).mean_never_captioned is None


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


def test_results_of_other_groups_are_not_compared() -> None:
    result = evaluation()
    other = result.model_copy(update={"image_groups": result.image_groups[::-1]})
    with pytest.raises(UserError, match="different queries in en, de, cs: "):
        differences(result, other)


def test_two_results_of_one_run_are_told_apart() -> None:
    first, later = evaluation(), evaluation(0.5, step=9)
    ranked = [evaluation(0.5, scoring="dual+cross", shortlist=Shortlist(k=k, recall={"en": 80.0})) for k in (5, 10)]
    for pair, titles in [
        ((first, ranked[0]), ["run-1 dual", "run-1 dual+cross"]),
        ((ranked[0], ranked[1]), ["run-1 shortlist 5", "run-1 shortlist 10"]),
        ((first, later), ["run-1 step 7", "run-1 step 9"]),
        ((first, first), ["run-1, first", "run-1, second"]),
    ]:
        assert [str(column.header) for column in compare(*pair).columns][1:3] == titles


def test_a_shortlist_goes_with_its_scoring() -> None:
    kept = Shortlist(k=10, recall={"en": 80.0})
    assert conditions(scoring="dual+cross", shortlist=kept).shortlist == kept
    for wrong in ({"scoring": "dual+cross"}, {"scoring": "cross", "shortlist": kept}):
        with pytest.raises(ValidationError, match="shortlist is given with"):
            conditions(**wrong)


def test_table_shows_everything_in_eighty_columns() -> None:
    result = evaluation()
    text = printed(result)
    assert "…" not in text
    german = result.languages["de"]
    row = next(line.split() for line in text.splitlines() if line.startswith("de"))
    low, high = german.interval
    assert row[7:] == [f"{german.mean_recall:.1f}", f"{low:.1f}–{high:.1f}", f"{german.chance:.1f}", "40"]
    for part in ("run-1, step 7", "40 pictures", "never captioned", "all languages", "protocol native", "en *"):
        assert part in text


def test_a_difference_that_holds_zero_is_called_none() -> None:
    good, same, bad = evaluation(0.3), evaluation(0.3, system="run-2"), evaluation(30.0, system="[run] 3")
    found = differences(good, bad)
    assert list(found) == ["en", "de", "cs", "all languages", "never captioned"]
    assert found["all languages"].low > 0
    rows = printed(compare(good, bad)).splitlines()
    assert any("[run] 3" in line for line in rows)
    mean = next(line for line in rows if "all languages" in line)
    assert f"{found['all languages'].value:+.1f}" in mean
    assert "none" not in mean
    assert printed(compare(good, same)).count("none") == 5


def test_comparison_does_not_depend_on_the_order_of_the_records() -> None:
    straight, turned = evaluation(0.5), evaluation(0.5, records=RECORDS[::-1])
    assert straight == turned
    assert all(found.value == 0 for found in differences(straight, turned).values())


def test_other_queries_are_refused_by_name() -> None:
    other = [{**record, "captions": {**record["captions"], "de": f"x {place}"}} for place, record in enumerate(RECORDS)]
    with pytest.raises(UserError, match="different queries in de: "):
        differences(evaluation(), evaluation(records=other))


def test_tensorboard_gets_every_language() -> None:
    written: dict[str, float] = {}

    class Writer:
        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            assert global_step == 7
            written[tag] = scalar_value

    result = evaluation()
    write_tensorboard(Writer(), result, 7)
    assert len(written) == 3 * 7 + 2
    assert written["retrieval/dev/dual/cs/mean_recall"] == result.languages["cs"].mean_recall
    assert written["retrieval/dev/dual/de/text_to_image_R@5"] == result.languages["de"].text_to_image["R@5"]
