"""Ours = AutoTokenizer of what is exported = sentencepiece, for small vocabularies of every kind, in 100 scripts and more."""

import io
import random
import re
import shutil
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, XLMRobertaTokenizer

from m3p.data.pieces import UNK, SentencePiece
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.export_check import Agreement, compare_tokens
from m3p.export_files import write_tokenizer
from m3p.sample_texts import SENTENCES, sample_texts, script_texts
from m3p.vocabulary import SENTENCEPIECE_FILE

MAX_TOKENS = 62
TEXTS = sample_texts()
CUSTOM_RULES = "61\t62 63\n41\t61\n2013\t2D\n00A0\t20\n0131\t69\n"
"""Code points and what they become: a -> bc, A -> a, en dash, no-break space, dotless i."""


class Kind(NamedTuple):
    """What a vocabulary is trained with."""

    algorithm: str
    byte_fallback: bool
    rules: str
    remove_extra_whitespaces: bool
    add_dummy_prefix: bool
    seed: int


class Exported(NamedTuple):
    """A vocabulary, and what AutoTokenizer reads of its export."""

    folder: Path
    ours: Tokenizer
    theirs: Any


KINDS = st.builds(
    Kind,
    algorithm=st.sampled_from(["unigram", "bpe"]),
    byte_fallback=st.booleans(),
    rules=st.sampled_from(["nmt_nfkc", "identity", "nfkc_cf", "custom"]),
    remove_extra_whitespaces=st.booleans(),
    add_dummy_prefix=st.booleans(),
    seed=st.integers(0, 3),
)


Export = Callable[[Kind], Exported]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Train and export a vocabulary of a kind, each kind once."""
    return cache(lambda kind: _export(kind, tmp_path_factory.mktemp("vocabulary")))


def _export(kind: Kind, folder: Path) -> Exported:
    """Train a vocabulary on some of the texts and export it; characters of the others it does not know."""
    model = io.BytesIO()
    lines = random.Random(kind.seed).sample(TEXTS, 25) + list(SENTENCES[: 9 * kind.seed + 9])
    rules: dict[str, Any] = {"normalization_rule_name": kind.rules}
    if kind.rules == "custom":
        (folder / "rules.tsv").write_text(CUSTOM_RULES)
        rules = {"normalization_rule_tsv": str(folder / "rules.tsv")}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 4),
        model_writer=model,
        model_type=kind.algorithm,
        vocab_size=3000,
        hard_vocab_limit=False,
        character_coverage=0.98 if kind.seed % 2 else 1.0,
        byte_fallback=kind.byte_fallback,
        remove_extra_whitespaces=kind.remove_extra_whitespaces,
        add_dummy_prefix=kind.add_dummy_prefix,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
        **rules,
    )
    (folder / SENTENCEPIECE_FILE).write_bytes(model.getvalue())
    (folder / "out").mkdir()
    ours = Tokenizer(folder)
    write_tokenizer(ours, MAX_TOKENS, folder / "out")
    (folder / "out" / "config.json").write_text('{"model_type": "xlm-roberta"}')
    return Exported(folder / "out", ours, AutoTokenizer.from_pretrained(folder / "out"))


def words_of_scripts() -> st.SearchStrategy[str]:
    """Words from the texts of many scripts, joined as people and machines join them."""
    words = sorted({word for text in TEXTS for word in text.split()})
    letters = st.characters(exclude_categories=["Cs", "M"], max_codepoint=0x1FFFF)
    short = st.text(letters, max_size=6)
    gaps = st.sampled_from([" ", " ", " ", "", "  ", ", ", "-", "\t", "\u00a0", "\u3000", "!!", "..", "▁"])
    parts = st.tuples(st.sampled_from(words) | short, gaps).map("".join)
    return st.lists(parts, max_size=12).map("".join)


@pytest.mark.long
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(KINDS, words_of_scripts())
def test_random_texts_are_cut_alike_by_all_three(export: Export, kind: Kind, text: str) -> None:
    assert_alike(export(kind), text)


@pytest.mark.long
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(KINDS)
def test_texts_of_a_hundred_scripts_are_cut_alike_by_all_three(export: Export, kind: Kind) -> None:
    assert len(script_texts()) > 100
    exported = export(kind)
    for text in TEXTS:
        assert_alike(exported, text)


def assert_alike(exported: Exported, text: str) -> None:
    """Fail unless all three give the same ids, or pieces of equal score where float32 cannot tell which is the best.

    Texts that the module says are cut differently are not compared.
    """
    ours = exported.ours.encode(text, 1 << 20).tolist()
    own = exported.ours.pieces
    assert isinstance(own, SentencePiece)
    whole = [0, *(piece + 1 if piece else UNK for piece in own.model.encode(text)), 2]
    assert_same_or_tied(exported.ours, text, ours, whole)
    if is_outside(text) or only_rules_that_remove(exported, text):
        return
    theirs = exported.theirs(text, verbose=False)["input_ids"]
    assert_same_or_tied(exported.ours, text, ours, theirs)
    if ours == theirs:
        cut = exported.theirs(text, truncation=True)["input_ids"]
        assert exported.ours.encode(text, MAX_TOKENS).tolist() == cut


def is_outside(text: str) -> bool:
    """Tell whether a text spells special pieces, or has letters that sentencepiece puts together and `tokenizers` does not."""
    typed = re.search("<(s|/s|pad|unk|mask|0x[0-9A-F]{2})>", text)
    apart = re.search("[\u1100-\u11ff\u3130-\u318f\uff9e-\uffdc]", text)
    return bool(typed or apart)


def only_rules_that_remove(exported: Exported, text: str) -> bool:
    """Tell whether nothing but the mark of a word's start is left: sentencepiece puts it before a removed letter too."""
    own = exported.ours.pieces
    assert isinstance(own, SentencePiece)
    return own.model.normalize(text).strip("▁ ") == ""


def assert_same_or_tied(tokenizer: Tokenizer, text: str, one: list[int], other: list[int]) -> None:
    if one == other:
        return
    own = tokenizer.pieces
    assert isinstance(own, SentencePiece)
    cuts = [[tokenizer.piece(token) for token in ids] for ids in (one, other)]
    assert own.is_unigram(), (text, *cuts)
    assert "".join(cuts[0]) == "".join(cuts[1]), (text, *cuts)
    first, second = (sum(own.model.get_score(token - 1) for token in ids if token > UNK) for ids in (one, other))
    assert first == pytest.approx(second, rel=1e-5), (text, *cuts)


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
@pytest.mark.parametrize("byte_fallback", [True, False])
def test_the_check_of_the_export_finds_them_alike(export: Export, algorithm: str, byte_fallback: bool) -> None:
    exported = export(Kind(algorithm, byte_fallback, "nmt_nfkc", True, True, 0))
    found = compare_tokens(exported.ours, exported.folder, TEXTS, MAX_TOKENS)
    assert found.alike > len(TEXTS)  # and some long ones
    assert (found.typed, found.apart) == (0, 0)


def test_xlmrs_class_would_cut_a_bpe_vocabulary_otherwise(export: Export) -> None:
    """What the general class is written for: the one that a folder without tokenizer.json gets reads every model as unigram."""
    exported = export(Kind("bpe", False, "nmt_nfkc", True, True, 0))
    shutil.copytree(exported.folder, bare := exported.folder.parent / "bare", dirs_exist_ok=True)
    (bare / "tokenizer.json").unlink()
    theirs = XLMRobertaTokenizer.from_pretrained(bare)
    wrong = sum(theirs(text)["input_ids"] != exported.ours.encode(text, 1 << 20).tolist() for text in SENTENCES)
    assert wrong > 10


def test_what_is_cut_otherwise_on_purpose_is_counted(export: Export) -> None:
    exported = export(Kind("unigram", False, "nmt_nfkc", True, True, 2))
    apart = [unicodedata.normalize("NFD", "빠른 갈색 여우가"), unicodedata.normalize("NFD", "パンをガラス")]
    found = compare_tokens(exported.ours, exported.folder, ["dog <mask> tree", "a </s> b", *apart], MAX_TOKENS)
    assert isinstance(found, Agreement)
    assert found.typed >= 2
    assert found.apart >= 2
    assert "with marks written apart" in str(found)
    for text in ("<mask>", "</s>", "<s><pad>"):
        assert all(3 <= token < exported.ours.mask for token in exported.ours.encode(text, 64).tolist()[1:-1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"user_defined_symbols": "[NEW]"}, r"its piece '\[NEW\]' is user-defined"),
        ({"control_symbols": "<mask>"}, r"its piece '<mask>' is user-defined, unused or a control piece"),
        ({"model_type": "char"}, "neither a unigram nor a bpe model"),
        ({"treat_whitespace_as_suffix": True}, "does not mark spaces by a ▁ before the word"),
        ({"unk_id": 3, "bos_id": 0, "eos_id": 1, "pad_id": 2}, "its first pieces are not <unk>, <s> and </s>"),
    ],
)
def test_what_tokenizer_json_cannot_say_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    model = io.BytesIO()
    ids = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES[:5] * 4),
        model_writer=model,
        **{"vocab_size": 100, "hard_vocab_limit": False, "minloglevel": 2, **ids, **settings},
    )
    (tmp_path / SENTENCEPIECE_FILE).write_bytes(model.getvalue())
    with pytest.raises(UserError, match=message):
        write_tokenizer(Tokenizer(tmp_path), MAX_TOKENS, tmp_path / "out")
