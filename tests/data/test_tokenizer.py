import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from m3p.data import tokenizer as module
from m3p.data.tokenizer import BOS, EOS, SENTENCEPIECE_FILE, UNK, Tokenizer
from m3p.errors import UserError
from tests.tiny import WORDS

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


def test_ids_of_a_real_vocabulary_are_those_of_transformers(xlmr_folder: Path) -> None:
    assert_as_transformers(xlmr_folder)


@given(st.text(), st.integers(4, 12))
def test_a_text_is_framed_cut_and_free_of_specials(tokenizer: Tokenizer, text: str, limit: int) -> None:
    try:
        ids = tokenizer.encode(text, limit)
    except UnicodeEncodeError:
        return  # a lone surrogate, which no source lets through
    assert ids.dtype == np.int64
    assert (int(ids[0]), int(ids[-1])) == (BOS, EOS)
    assert 2 <= len(ids) <= limit
    assert all(UNK <= i < tokenizer.mask for i in ids[1:-1].tolist()), "a text cannot smuggle in a special token"
    whole = tokenizer.encode(text, 10_000)
    assert ids[:-1].tolist() == whole[: len(ids) - 1].tolist()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=6).map(" ".join))
def test_words_alone_read_as_in_the_whole_text(tokenizer: Tokenizer, text: str) -> None:
    """Ways to cut a word that score alike may differ; what is read may not."""
    whole = tokenizer.pieces.encode(text)
    ours = tokenizer.encode(text, 10_000)[1:-1].tolist()
    assert "".join(map(tokenizer.piece, ours)).replace("<unk>", "") == "".join(map(tokenizer.piece, whole)).replace(
        "<unk>", ""
    )


def test_a_long_text_is_not_read_beyond_what_is_kept(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    ids = tokenizer._ids
    monkeypatch.setattr(tokenizer, "_ids", lambda word: seen.append(word) or ids(word))  # type: ignore[func-returns-value]
    assert len(tokenizer.encode("dog cat " * 500, 12)) == 12
    assert len(seen) == 10
    nothing = "\u200b "  # a word of no width, of which no piece is left
    assert tokenizer.encode(nothing * 20 + "dog cat", 12).tolist() == tokenizer.encode("dog cat", 12).tolist()


def test_few_words_are_remembered_and_none_that_are_long(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Tokenizer(tokenizer.path.parent)
    monkeypatch.setattr(module, "MAX_WORDS", 2)
    texts = ["dog cat tree", "dog cat tree", "dog" * module.LONGEST_WORD]
    assert [fresh.encode(text, 64).tolist() for text in texts] == [
        tokenizer.encode(text, 64).tolist() for text in texts
    ]
    assert set(fresh._ids.__self__) == {"dog", "cat"}  # type: ignore[attr-defined]


def test_a_vocabulary_with_spaces_inside_pieces_gets_whole_texts(tmp_path: Path) -> None:
    lines = [" ".join(WORDS["en"][number : number + 2]) for number in range(len(WORDS["en"]) - 1)] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "made"),
        vocab_size=120,
        hard_vocab_limit=False,
        split_by_whitespace=False,
        minloglevel=2,
    )
    (tmp_path / "made.model").rename(tmp_path / SENTENCEPIECE_FILE)
    made = Tokenizer(tmp_path)
    assert not made.by_word
    for line in lines[:20]:
        wanted = made.pieces.encode(line)
        assert made.encode(line, 64).tolist() == [BOS, *wanted, EOS]
    assert len(made.encode(lines[0], 4)) == 4


@given(st.lists(st.sampled_from(TEXTS), max_size=5), st.integers(4, 12))
def test_many_texts_are_as_one_by_one(tokenizer: Tokenizer, texts: list[str], limit: int) -> None:
    ids, lengths = tokenizer.encode_flat(texts, limit)
    wanted = [tokenizer.encode(text, limit).tolist() for text in texts]
    assert lengths.tolist() == [len(one) for one in wanted]
    assert ids.tolist() == [number for one in wanted for number in one]


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
    (tmp_path / SENTENCEPIECE_FILE).write_bytes(b"no model")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        Tokenizer(tmp_path)
