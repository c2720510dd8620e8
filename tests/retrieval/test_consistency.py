import numpy as np
import pytest

from m3p.retrieval.consistency import image_to_text_spread, text_to_image_spread
from m3p.retrieval.intervals import GroupedRanks
from m3p.retrieval.metrics import QueryRanks


def language(text_to_image: list[int], image_to_text: list[int], captions: list[int]) -> GroupedRanks:
    ranks = QueryRanks(np.array(text_to_image), np.array(image_to_text))
    return GroupedRanks(ranks, np.arange(len(image_to_text)), np.array(captions))


def test_the_spread_is_that_of_each_instance_over_languages_then_the_mean() -> None:
    languages = {"en": language([1, 2], [1, 4], [0, 1]), "de": language([3, 2], [1, 10], [0, 1])}
    found = text_to_image_spread(languages)
    assert found is not None
    assert (found.rank_std, found.rank_var, found.rank_range, found.instances) == (0.5, 0.5, 1.0, 2)
    back = image_to_text_spread(languages)
    assert back is not None
    assert (back.rank_std, back.rank_var, back.rank_range) == (1.5, 4.5, 3.0)


def test_the_population_s_standard_deviation_as_ccrk_has_it() -> None:
    ranks = np.array([[1, 5, 2], [4, 1, 9], [1, 1, 30], [7, 2, 2]])  # languages, instances
    languages = {f"l{row}": language(list(one), list(one), [0, 1, 2]) for row, one in enumerate(ranks)}
    found = text_to_image_spread(languages)
    assert found is not None
    by_hand = np.mean([(np.sum((column - column.mean()) ** 2) / 4) ** 0.5 for column in ranks.T])
    assert found.rank_std == pytest.approx(by_hand)


def test_only_what_every_language_asks_about_counts() -> None:
    languages = {"en": language([1, 3, 5], [1, 2, 3], [0, 0, 1]), "fr": language([4], [0, 7, 2], [0])}
    found = text_to_image_spread(languages)
    assert found is not None
    assert (found.instances, found.rank_range) == (1, 2.0), "the mean rank of two captions, 2, against 4"
    back = image_to_text_spread(languages)
    assert back is not None
    assert (back.instances, back.rank_range) == (2, (5 + 1) / 2)


def test_one_language_has_no_spread() -> None:
    assert text_to_image_spread({"en": language([1], [1], [0])}) is None
    assert image_to_text_spread({"en": language([1], [1], [0])}) is None
    assert image_to_text_spread({"en": language([1], [1, 0], [0]), "fr": language([1], [0, 1], [1])}) is None
