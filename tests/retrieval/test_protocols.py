"""Each protocol makes the pool that it says, and m3p-compat has the bias of the original code."""

from typing import Any

import numpy as np
import pytest

from m3p.errors import UserError
from m3p.keys import generator
from m3p.retrieval.metrics import QueryRanks, rank_both_ways, recalls
from m3p.retrieval.pool import Pool
from m3p.retrieval.protocols import PROTOCOLS


def records(number: int, captions: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{place:04}", "captions": {"fr": [f"caption {k} of {place}" for k in range(captions)]}}
        for place in range(number)
    ]


def ranked(pool: Pool, skill: float) -> QueryRanks:
    """Scores that belong to picture and text, so that a repeated caption scores like itself."""
    rng = generator("test", "protocols")
    texts = list(dict.fromkeys(caption.text for caption in pool.captions["fr"]))
    column = [texts.index(caption.text) for caption in pool.captions["fr"]]
    owners = np.array([int(text.rsplit(" ", 1)[1]) for text in texts])
    noise = rng.normal(size=(len(pool.images), len(texts)))
    scores = noise + skill * (np.arange(len(pool.images))[:, None] == owners)
    return rank_both_ways(scores[:, column], pool.right("fr"))


def test_m3p_compat_has_the_bias_of_the_original_code() -> None:
    given = records(300, 1)
    native = PROTOCOLS["native"].pool(given, ["fr"])
    compat = PROTOCOLS["m3p-compat"].pool(given, ["fr"])
    assert (len(native.captions["fr"]), len(compat.captions["fr"])) == (300, 1500)
    real, biased = recalls(ranked(native, 2.0)), recalls(ranked(compat, 2.0))
    assert biased["text_to_image"] == pytest.approx(real["text_to_image"]), "captions that ask are not touched"
    one, ten = biased["image_to_text"]["R@1"], biased["image_to_text"]["R@10"]
    assert one == real["image_to_text"]["R@1"]
    assert biased["image_to_text"]["R@5"] == one, "the five copies of a wrong caption take the first five places"
    found = ranked(native, 2.0).image_to_text
    assert ten == pytest.approx(100 * (found <= 2).mean()), "R@10 is: the caption ranks among the first two"
    assert biased["mean_recall"] < real["mean_recall"] - 2


@pytest.mark.long
def test_m3p_compat_takes_the_first_thousand_and_five_captions_each_and_breaks_ties_by_order() -> None:
    protocol = PROTOCOLS["m3p-compat"]
    given = records(1001, 7)
    given[0]["captions"]["fr"] = "one alone"
    given[1]["captions"] = {}
    pool = protocol.pool(given, ["fr"])
    assert pool.images == [f"{place:04}" for place in range(1000)]
    counts = pool.right("fr").sum(axis=1)
    assert counts[1] == 0
    assert set(np.delete(counts, 1).tolist()) == {5}
    assert [caption.text for caption in pool.captions["fr"][:5]] == ["one alone"] * 5
    drawn = [caption.text for caption in pool.captions["fr"][5:10]]
    assert len(set(drawn)) == 5, "more than five are drawn without repeats"
    assert pool == protocol.pool(given, ["fr"]), "the draw is the same each time"
    equal = np.zeros(pool.right("fr").shape)
    assert rank_both_ways(equal, pool.right("fr"), protocol.ties).text_to_image[:5].tolist() == [1] * 5


@pytest.mark.long
def test_the_first_five_captions_count_in_coco_s_pools_also_where_two_are_alike() -> None:
    given = records(5000, 6)
    given[0]["captions"]["fr"][:2] = ["twice", "twice"]
    full = PROTOCOLS["full5k"].pool(given, ["fr"])
    assert len(full.captions["fr"]) == 25_000
    assert [caption.text for caption in full.captions["fr"][:2]] == ["twice", "twice"]
    folds = PROTOCOLS["folds5x1k"].pool(given, ["fr"])
    assert [(len(images), len(captions)) for images, captions in folds.parts("fr")] == [(1000, 5000)] * 5
    assert folds.parts("fr")[1][0].tolist() == list(range(1000, 2000))
    assert {caption.concept for caption in (folds.captions["fr"][n] for n in folds.parts("fr")[1][1])} == set(
        folds.images[1000:2000]
    )


@pytest.mark.parametrize(
    ("name", "wanted"), [("folds5x1k", 5000), ("full5k", 5000), ("iglue", 2000), ("xtd", 1000), ("xm3600", 3600)]
)
def test_a_pool_of_another_size_is_refused(name: str, wanted: int) -> None:
    message = rf"protocol {name}: its pool has {wanted:,} pictures, and here are 7 that .*--protocol native"
    with pytest.raises(UserError, match=message):
        PROTOCOLS[name].pool(records(7, 1), ["fr"])


def test_a_concept_in_two_folds_is_refused() -> None:
    given = records(5000, 1)
    given[0]["concept"] = given[4999]["concept"] = "dog"
    with pytest.raises(UserError, match="concept 'dog' has pictures in different folds"):
        PROTOCOLS["folds5x1k"].pool(given, ["fr"])


def test_one_caption_a_picture_where_the_set_has_one() -> None:
    assert len(PROTOCOLS["iglue"].pool(records(2000, 2), ["fr"]).captions["fr"]) == 2000
    assert len(PROTOCOLS["xm3600"].pool(records(3600, 2), ["fr"]).captions["fr"]) == 7200


def test_each_protocol_says_what_it_is() -> None:
    assert all(protocol.meaning.endswith(".") for protocol in PROTOCOLS.values())
