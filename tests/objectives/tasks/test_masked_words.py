import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p.data.tokenizer import BOS, EOS, Tokenizer
from m3p.keys import keys_of
from m3p.objectives.tasks.masked_words import mask_words


def sentence(pieces: int, tokenizer: Tokenizer, piece: int | None = None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    rng = np.random.default_rng(0)
    body = rng.integers(tokenizer.first_piece, tokenizer.mask, pieces) if piece is None else np.full(pieces, piece)
    return np.concatenate([[BOS], body, [EOS]]).astype(np.int64)


def keys(texts: int, first: int = 0) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return keys_of(np.arange(first, first + 4 * texts, dtype=np.uint64).reshape(-1, 4), "mask")


@pytest.mark.parametrize(("texts", "pieces"), [(1, 40_000), (1000, 40)])
def test_fifteen_in_a_hundred_are_chosen_and_80_10_10_of_them_hidden_replaced_kept(
    tokenizer: Tokenizer, texts: int, pieces: int
) -> None:
    true = tokenizer.first_piece
    tokens, lengths = np.tile(sentence(pieces, tokenizer, true), texts), np.full(texts, pieces + 2)
    hidden, places = mask_words(tokens, lengths, keys(texts), 0.15, tokenizer)
    assert len(places) / (texts * pieces) == pytest.approx(0.15, abs=0.008)
    shown = hidden[places]
    assert np.mean(shown == tokenizer.mask) == pytest.approx(0.8, abs=0.02)
    # A random piece is the true one now and then.
    drawn = np.mean((shown != tokenizer.mask) & (shown != true))
    assert drawn == pytest.approx(0.1 * (1 - 1 / (tokenizer.mask - tokenizer.first_piece)), abs=0.015)
    assert np.mean(shown == true) == pytest.approx(0.1, abs=0.015)
    replaced = shown[(shown != tokenizer.mask) & (shown != true)]
    assert set(range(tokenizer.first_piece, tokenizer.mask)) - set(replaced.tolist()) <= {true}
    if texts > 1:
        assert np.bincount(places % (pieces + 2), minlength=pieces + 2)[1:-1].min() > 100, "every place has its turn"


@given(st.integers(1, 30), st.floats(0.001, 0.999), st.integers(0, 10**9))
def test_specials_stay_and_at_least_one_piece_is_chosen(
    tokenizer: Tokenizer, pieces: int, rate: float, number: int
) -> None:
    tokens = sentence(pieces, tokenizer)
    before = tokens.copy()
    hidden, places = mask_words(tokens, np.array([len(tokens)]), keys(1, number), rate, tokenizer)
    assert np.array_equal(tokens, before), "the true ids are the labels"
    assert len(set(places.tolist())) == len(places) >= 1
    assert 1 <= places.min() <= places.max() <= pieces
    rest = np.setdiff1d(np.arange(len(tokens)), places)
    assert np.array_equal(hidden[rest], tokens[rest])
    assert ((hidden[places] >= tokenizer.first_piece) & (hidden[places] <= tokenizer.mask)).all()


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.floats(0.001, 0.999), st.integers(0, 2**60))
def test_each_passage_is_masked_as_if_alone(tokenizer: Tokenizer, pieces: list[int], rate: float, number: int) -> None:
    passages = [sentence(count, tokenizer) for count in pieces]
    tokens, lengths = np.concatenate(passages), np.array([len(passage) for passage in passages])
    of_each = keys(len(pieces), number)
    hidden, places = mask_words(tokens, lengths, of_each, rate, tokenizer)
    assert np.array_equal(tokens, np.concatenate(passages)), "the true ids are the labels"
    first = 0
    for index, passage in enumerate(passages):
        alone, chosen = mask_words(passage, lengths[index : index + 1], of_each[index : index + 1], rate, tokenizer)
        end = first + len(passage)
        assert hidden[first:end].tolist() == alone.tolist()
        assert (places[(places >= first) & (places < end)] - first).tolist() == chosen.tolist()
        assert (len(chosen) >= 1) == (len(passage) > 2)
        assert ((chosen >= 1) & (chosen < len(passage) - 1)).all()
        rest = np.setdiff1d(np.arange(len(passage)), chosen)
        assert np.array_equal(alone[rest], passage[rest])
        first = end


def test_a_sentence_without_pieces_has_nothing_to_hide(tokenizer: Tokenizer) -> None:
    hidden, places = mask_words(np.array([BOS, EOS]), np.array([2]), keys(1), 0.15, tokenizer)
    assert hidden.tolist() == [BOS, EOS]
    assert len(places) == 0
