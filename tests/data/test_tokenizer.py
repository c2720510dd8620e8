import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.tokenizer import BOS, EOS, FILE_NAME, UNK, Tokenizer
from trainer.errors import UserError

TEXTS = [
    "dog cat tree",
    "Hund Katze.",
    "犬 猫 川",
    "  two   spaces ",
    "☃ ünknown 𓀀 letters",
    "<s> </s> <mask> <pad>",
    "ﬁne ½ ① — “quotes”",
    "",
]


def assert_as_transformers(folder: Path) -> None:
    from transformers import XLMRobertaTokenizer

    ours, theirs = Tokenizer(folder), XLMRobertaTokenizer.from_pretrained(folder)
    assert ours.size == len(theirs)
    assert (ours.mask, BOS, EOS, UNK) == (
        theirs.mask_token_id,
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.unk_token_id,
    )
    for text in TEXTS:
        if "<" not in text:  # theirs reads "<mask>" in a text as the token
            assert ours.encode(text, 64).tolist() == theirs(text)["input_ids"], text


def test_ids_are_those_of_transformers(tokenizer: Tokenizer) -> None:
    assert_as_transformers(tokenizer.path.parent)


def test_ids_of_a_real_vocabulary_are_those_of_transformers(shared_encoder: Path) -> None:
    assert_as_transformers(shared_encoder)


@given(st.text(), st.integers(4, 12))
def test_a_text_is_framed_cut_and_free_of_specials(tokenizer: Tokenizer, text: str, most: int) -> None:
    try:
        ids = tokenizer.encode(text, most)
    except UnicodeEncodeError:
        return  # a lone surrogate, which no source lets through
    assert ids.dtype == np.int64
    assert (int(ids[0]), int(ids[-1])) == (BOS, EOS)
    assert 2 <= len(ids) <= most
    assert all(UNK <= i < tokenizer.mask for i in ids[1:-1].tolist()), "a text cannot smuggle in a special token"
    whole = tokenizer.encode(text, 10_000)
    assert ids[:-1].tolist() == whole[: len(ids) - 1].tolist()


def test_decoding_gives_the_text_back(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("dog cat tree", 64)) == "dog cat tree"
    hidden = tokenizer.encode("dog cat", 64)
    hidden[1] = tokenizer.mask
    assert tokenizer.decode(hidden).startswith("<mask>")


def test_it_goes_to_a_worker_by_its_path(tokenizer: Tokenizer) -> None:
    content = pickle.dumps(tokenizer)
    assert len(content) < 1000
    copy = pickle.loads(content)
    assert (copy.size, copy.mask) == (tokenizer.size, tokenizer.mask)
    assert copy.encode("dog cat", 64).tolist() == tokenizer.encode("dog cat", 64).tolist()


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sentencepiece\.bpe\.model is missing: model\.tokenizer wants a folder"):
        Tokenizer(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"no model")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        Tokenizer(tmp_path)
