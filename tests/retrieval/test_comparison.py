import pytest

from m3p.errors import UserError
from m3p.retrieval.comparison import compare, differences
from m3p.retrieval.result import Shortlist
from tests.retrieval.results import RECORDS, evaluation, printed


def test_results_of_other_groups_are_not_compared() -> None:
    result = evaluation()
    other = result.model_copy(update={"image_groups": result.image_groups[::-1]})
    with pytest.raises(UserError, match="different queries in en, de, cs: "):
        differences(result, other)


def test_results_of_two_protocols_are_not_compared_though_their_queries_are_the_same() -> None:
    """One counts equal scores against the system, the other by order."""
    with pytest.raises(UserError, match=r"by protocol native and run-1 by m3p-compat.*--protocol native\)"):
        compare(evaluation(), evaluation(protocol="m3p-compat"))


@pytest.mark.long
def test_two_results_of_one_run_are_told_apart() -> None:
    first, later = evaluation(), evaluation(0.5, step=9)
    ranked = [evaluation(0.5, scoring="dual+cross", shortlist=Shortlist(k=k, recall={"en": 80.0})) for k in (5, 10)]
    for pair, titles in [
        ((first, ranked[0]), ["run-1 dual", "run-1 dual+cross"]),
        ((ranked[0], ranked[1]), ["run-1 shortlist 5", "run-1 shortlist 10"]),
        ((first, later), ["run-1 step 7", "run-1 step 9"]),
        ((evaluation(centre="captions"), first), ["run-1 dual, queries centred", "run-1 dual"]),
        ((first, first), ["run-1, first", "run-1, second"]),
    ]:
        assert [str(column.header) for column in compare(*pair).columns][1:3] == titles


def test_centred_queries_are_named_where_two_systems_are_compared() -> None:
    rows = printed(compare(evaluation(system="run-2", centre="captions"), evaluation()))
    assert "run-2 (dual, queries centred) less run-1 (dual)" in " ".join(rows.split())


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
