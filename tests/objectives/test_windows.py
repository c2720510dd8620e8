from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p.data.tokenizer import BOS, EOS, Tokenizer
from m3p.objectives.multilingual_text import MultilingualText
from m3p.objectives.windows import window_starts
from m3p.prepare.shards import ShardWriter
from m3p.recipe.load import load_recipe
from m3p.training.build_objectives import build_objectives
from tests.batches import sequences
from tests.tiny import WORDS

MOST = 8


def owners(sample: int, epochs: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    return np.array([[7, epoch, 3, sample] for epoch in range(epochs)], np.uint64)


@given(size=st.integers(2, 400), window=st.integers(1, 40), sample=st.integers(0, 2**40))
def test_as_many_epochs_as_there_are_windows_show_every_token(size: int, window: int, sample: int) -> None:
    size = max(size, window + 1)
    windows = -(-size // window)
    starts = window_starts(np.full(2 * windows, size), window, owners(sample, 2 * windows))
    assert 0 <= starts.min() <= starts.max() == size - window
    for first in range(windows + 1):
        seen = {token for start in starts[first : first + windows].tolist() for token in range(start, start + window)}
        assert seen == set(range(size))


def test_texts_of_one_length_show_different_windows_in_one_epoch() -> None:
    rows = np.array([[7, 0, 0, sample] for sample in range(400)], np.uint64)
    starts = window_starts(np.full(400, 100), 25, rows)
    counts = np.bincount(starts // 25)
    assert len(counts) == 4
    assert counts.min() > 60


@pytest.fixture
def text(tiny: Path, tmp_path: Path) -> MultilingualText:
    """Ten passages: of 3 to 21 words, in shards of four; the tokens of a window and the specials are `MOST`."""
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "text", "text", 4, "en") as writer:
        for number in range(10):
            writer.write({"txt": " ".join(rng.choice(WORDS["en"], 3 + 2 * number)).encode()})
    settings = [
        f"objectives.multilingual_text.sources=[{{path: {tmp_path}/text}}]",
        f"objectives.multilingual_text.max_tokens={MOST}",
    ]
    made = build_objectives(load_recipe(tiny, settings))["multilingual_text"]
    assert isinstance(made, MultilingualText)
    return made


def shown(text: MultilingualText, position: int, tokenizer: Tokenizer) -> tuple[str, list[int], list[int]]:
    """Return the passage at a position, all its tokens, and those that the network is shown, before they are masked."""
    samples = text.mix.read_many([position])
    (passage,) = samples.records
    return passage, tokenizer.encode(passage, 10**6).tolist(), text.tokenise(samples).ids.tolist()


def test_every_token_of_a_long_passage_is_shown_and_a_short_one_stays_whole(
    text: MultilingualText, tokenizer: Tokenizer
) -> None:
    seen: dict[str, set[int]] = {}
    every: dict[str, list[int]] = {}
    for position in range(10 * 20):
        passage, whole, ids = shown(text, position, tokenizer)
        every[passage] = whole
        if len(whole) <= MOST:
            assert ids == whole
            continue
        assert (ids[0], ids[-1], len(ids)) == (BOS, EOS, MOST)
        inner, body = whole[1:-1], ids[1:-1]
        starts = [n for n in range(len(inner) - len(body) + 1) if inner[n : n + len(body)] == body]
        assert starts, "a window is a run of the passage's tokens"
        for start in starts:
            seen.setdefault(passage, set()).update(range(start, start + len(body)))
    longer = {passage for passage, whole in every.items() if len(whole) > MOST}
    assert len(longer) >= 5
    assert len(longer) < len(every) == 10
    assert {passage: len(seen[passage]) for passage in longer} == {p: len(every[p]) - 2 for p in longer}


def test_a_window_depends_on_the_sample_and_its_epoch_alone(text: MultilingualText) -> None:
    turn = range(40)
    together = sequences(text.batch(turn, turn))
    halves = [sequences(text.batch(turn, part)) for part in (range(17), range(17, 40))]
    assert together == [*halves[0], *halves[1]]
    assert text.batch(turn, turn).counts["text/windows"] > 10


def test_passages_that_fit_are_not_counted(tiny: Path) -> None:
    text = build_objectives(load_recipe(tiny))["multilingual_text"]
    assert "text/windows" not in text.batch(range(40), range(40)).counts
