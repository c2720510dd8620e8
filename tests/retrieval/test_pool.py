import pytest

from m3p.errors import UserError
from m3p.retrieval.pool import Caption, Pool

RECORDS = [
    {"id": "a", "concept": "dog", "captions": {"en": "dog", "de": ["Hund", "Köter"]}},
    {"id": "b", "concept": "dog", "captions": {"en": "dog", "de": ["Hund"]}},
    {"id": "c", "captions": {"en": "cat"}},
    {"id": "d", "captions": {"en": "cat"}},
]


def test_pool_asks_a_shared_caption_once_and_counts_every_picture_of_its_concept() -> None:
    pool = Pool.of(RECORDS, ["en", "de"])
    assert pool.captions["en"] == [Caption("dog", "dog"), Caption("cat", "c"), Caption("cat", "d")]
    assert [caption.text for caption in pool.captions["de"]] == ["Hund", "Köter"]
    assert pool.right("en").tolist() == [[True, False, False]] * 2 + [[False, True, False], [False, False, True]]
    images, captions = pool.groups("en")
    assert images.tolist() == [0, 0, 1, 2]
    assert captions.tolist() == [0, 1, 2]
    assert pool.groups("de")[1].tolist() == [0, 0]


def test_a_picture_is_not_right_for_a_concept_that_has_its_name() -> None:
    records = [
        {"id": "dog", "captions": {"en": "a sofa"}},
        {"id": "picture dog", "captions": {"en": "a lamp"}},
        {"id": "x", "concept": "dog", "captions": {"en": "a dog"}},
        {"id": "y", "concept": "dog", "captions": {"en": "a dog"}},
    ]
    pool = Pool.of(records, ["en"])
    assert pool.right("en").astype(int).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert pool.concepts[1:] == ["picture dog", "dog", "dog"]


def test_pool_names_the_languages_there_are() -> None:
    with pytest.raises(UserError, match=r"language 'xx'.*de, en"):
        Pool.of(RECORDS, ["xx"])
