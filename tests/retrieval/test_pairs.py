import time

import numpy as np
import torch

from m3p.data.tokenizer import Tokenizer
from m3p.retrieval.pairs import Captions, EmbeddedPictures, caption_batches, pair_batches

TEXTS = ["dog cat tree", "moon", "", "house river bird moon stone"]


def test_captions_are_cut_as_in_training_and_the_cut_ones_counted(tokenizer: Tokenizer) -> None:
    captions = Captions.of(TEXTS, tokenizer, 5)
    wanted = [tokenizer.encode(text, 5) for text in TEXTS]
    assert captions.ids.tolist() == np.concatenate(wanted).tolist()
    assert captions.lengths.tolist() == [len(ids) for ids in wanted]
    assert captions.truncated.tolist() == [len(tokenizer.encode(text, 99)) > 5 for text in TEXTS]
    assert captions.truncated.any()
    assert not captions.truncated.all()
    part = captions.part(1, 3)
    assert part.ids.tolist() == np.concatenate(wanted[1:3]).tolist()


def test_a_batch_holds_each_pair_s_words_and_shows_the_rows_of_its_picture(tokenizer: Tokenizer) -> None:
    captions = Captions.of(TEXTS, tokenizer, 32)
    pictures = EmbeddedPictures(torch.zeros(9, 4), np.array([2, 4, 3]))
    pairs = np.array([[0, 2], [3, 0], [0, 1], [2, 2], [1, 1]])
    seen = []
    for rows, batch in pair_batches(captions, pictures, pairs, 2):
        words = np.split(batch.token_ids.numpy(), batch.words.cumsum(0).numpy()[:-1])
        shown = np.split(batch.visual_rows.numpy(), (batch.lengths - batch.words).cumsum(0).numpy()[:-1])
        for row, ids, places in zip(rows.tolist(), words, shown, strict=True):
            caption, picture = pairs[row]
            assert ids.tolist() == tokenizer.encode(TEXTS[caption], 32).tolist()
            first = pictures.starts[picture]
            assert places.tolist() == list(range(first, first + pictures.tokens[picture]))
            seen.append(row)
        assert batch.tokens == int(batch.lengths.sum())
        assert batch.longest == int(batch.lengths.max())
    assert sorted(seen) == list(range(5))


def test_captions_alone_are_batched_by_length(tokenizer: Tokenizer) -> None:
    captions = Captions.of(TEXTS, tokenizer, 32)
    batches = list(caption_batches(captions, 3))
    assert sorted(np.concatenate([rows for rows, _ in batches]).tolist()) == [0, 1, 2, 3]
    lengths = np.concatenate([batch.lengths.numpy() for _, batch in batches])
    assert lengths.tolist() == sorted(lengths.tolist())


def test_ten_thousand_pairs_a_second_are_laid_out_for_a_detector_s_hundred_regions() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 30, 500)
    captions = Captions(rng.integers(4, 999, lengths.sum()), lengths, np.zeros(500, np.bool_))
    pictures = EmbeddedPictures(torch.zeros(6400, 1), np.full(64, 100))
    pairs = np.stack([rng.integers(0, 500, 20_000), rng.integers(0, 64, 20_000)], 1)
    start = time.process_time()
    assert sum(len(rows) for rows, _ in pair_batches(captions, pictures, pairs, 64)) == 20_000
    assert 20_000 / (time.process_time() - start) > 10_000
