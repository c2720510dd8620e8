import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from m3p.data.tokenizer import BOS, EOS, Tokenizer
from m3p.keys import keys_of
from m3p.objectives.segments import encode_segments
from m3p.objectives.tasks.masked_words import mask_words
from tests.tiny import WORDS

TEXTS = st.lists(st.sampled_from(WORDS["en"] + WORDS["de"]), max_size=12).map(" ".join)


@given(st.lists(st.lists(TEXTS, min_size=1, max_size=3), max_size=4))
def test_segments_stand_between_separators_as_xlm_r_joins_two_sentences(
    tokenizer: Tokenizer, texts: list[list[str]]
) -> None:
    ids, lengths = encode_segments(texts, 1000, tokenizer)
    wanted: list[int] = []
    for segments in texts:
        pieces = [tokenizer.encode(segment, 1000)[1:-1].tolist() for segment in segments]
        wanted.append(BOS)
        for number, piece in enumerate(pieces):
            wanted += [EOS, EOS] * (number > 0) + piece
        wanted.append(EOS)
    assert ids.tolist() == wanted
    assert lengths.sum() == len(wanted)


@given(st.lists(TEXTS, min_size=1, max_size=3), st.integers(6, 40))
def test_what_is_too_long_loses_the_ends_of_its_longest_segments(
    tokenizer: Tokenizer, segments: list[str], limit: int
) -> None:
    ids, (length,) = encode_segments([segments], limit, tokenizer)
    assert len(ids) == length <= limit
    whole = [len(tokenizer.encode(segment, 1000)) - 2 for segment in segments]
    inner = "".join(" " if token == EOS else "x" for token in ids[1:-1].tolist()).split("  ")
    kept = [len(part) for part in inner]
    assert len(kept) == len(whole)
    if sum(whole) <= limit - 2 * len(whole):
        assert kept == whole
    else:
        assert sum(kept) > limit - 3 * len(whole), "no room is left unused but what cannot be shared evenly"
        assert kept == [min(size, max(kept)) for size in whole]


@given(st.lists(st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=4), st.floats(0.01, 0.99))
def test_separators_between_segments_are_never_masked(
    tokenizer: Tokenizer, texts: list[list[str]], rate: float
) -> None:
    ids, lengths = encode_segments(texts, 64, tokenizer)
    owners = np.arange(4 * len(texts), dtype=np.uint64).reshape(-1, 4)
    hidden, places = mask_words(ids, lengths, keys_of(owners, "mask"), rate, tokenizer)
    special = (ids == BOS) | (ids == EOS)
    assert not special[places].any()
    assert np.array_equal(hidden[special], ids[special])
    ends = lengths.cumsum()
    pieces = [int((~special[end - length : end]).sum()) for end, length in zip(ends, lengths, strict=True)]
    chosen = np.bincount(ends.searchsorted(places, "right"), minlength=len(texts))
    assert [bool(number) for number in chosen] == [bool(number) for number in pieces], (
        "one at least of each that has any"
    )
