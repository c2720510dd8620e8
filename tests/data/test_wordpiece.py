"""BERT-shaped folders with their own WordPiece vocabulary: tokens and hidden states are those of `transformers`, and back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizer

from m3p.batch import Sequence
from m3p.checkpoints.resumable import vocabulary_hash
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.export_check import compare_tokens
from m3p.export_files import write_tokenizer
from m3p.model.build import build_model
from m3p.model.config import ModelConfig
from m3p.model.huggingface import read_shape, write_folder
from m3p.model.m3p import M3P
from m3p.objectives.tasks import TASKS
from m3p.packing import Packer
from m3p.sample_texts import sample_texts
from m3p.vocabulary import row_order, same_vocabulary

TYPED = [
    "dog [MASK] tree",
    "[CLS] a [SEP]",
    "a ▁ b",
    "x" * 120,
    "",
    "  two  spaces ",
    "Ünïcodé Straße İ",
    "tab\tline\nend",
]
MAX_TOKENS = 30


@pytest.fixture(scope="module")
def pieces() -> list[str]:
    """A vocabulary in mBERT's order: [PAD], unused ones, [UNK], [CLS], [SEP], [MASK], then pieces."""
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    model.pre_tokenizer = BertPreTokenizer()
    model.train_from_iterator(sample_texts()[::3], WordPieceTrainer(vocab_size=900, special_tokens=["[UNK]"]))
    found = sorted(model.get_vocab(), key=model.get_vocab().__getitem__)
    return ["[PAD]", "[unused1]", "[unused2]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *found[1:]]


@pytest.fixture(scope="module")
def folder(pieces: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random mBERT as it is published: vocab.txt, tokenizer_config.json, weights with a word head."""
    folder = tmp_path_factory.mktemp("mbert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.25)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    settings = {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def variant(folder: Path, output: Path, kind: str) -> Path:
    """Copy a folder with its vocabulary in another form."""
    shutil.copytree(folder, output)
    if kind == "lower case by default":
        (output / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    elif kind == "tokenizer.json":
        (output / "vocab.txt").unlink()
        BertTokenizer.from_pretrained(folder).save_pretrained(output)
        assert (output / "tokenizer.json").is_file()
        assert not (output / "vocab.txt").exists()
    return output


def opened(folder: Path) -> M3P:
    return build_model(
        ModelConfig(initialise=folder), Tokenizer(folder).size, None, [TASKS["masked_words"]], seed=1
    ).eval()


@torch.no_grad()
def hidden(model: M3P, tokenizer: Tokenizer, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [L, width] and logits [L, vocabulary]."""
    packer = Packer(1)
    ids = tokenizer.encode(text, MAX_TOKENS)
    packer.add(Sequence(ids))
    packer.target("masked_words", slots=np.arange(len(ids)))
    batch = packer.finish(1)
    return model.encode(batch)[0], model(batch).tasks["masked_words"]


@pytest.mark.parametrize("kind", ["vocab.txt", "lower case by default", "tokenizer.json"])
def test_texts_are_cut_as_transformers_cuts_them(folder: Path, tmp_path: Path, kind: str) -> None:
    copy = variant(folder, tmp_path / "copy", kind)
    ours, theirs, order = Tokenizer(copy), AutoTokenizer.from_pretrained(copy), row_order(copy)
    assert order is not None
    assert (ours.size, order[ours.mask]) == (len(theirs), theirs.mask_token_id)
    assert [order[number] for number in range(4)] == [
        theirs.cls_token_id, theirs.pad_token_id, theirs.sep_token_id, theirs.unk_token_id,
    ]  # fmt: skip
    assert ours.by_word
    unknown = total = 0
    for text in [*sample_texts(), *TYPED[2:]]:
        wanted = theirs(text, verbose=False)["input_ids"]
        assert [order[token] for token in ours.encode(text, 10_000)] == wanted, text
        unknown, total = unknown + wanted.count(theirs.unk_token_id), total + len(wanted)
    assert 0 < 2 * unknown < total
    for text in TYPED[:2]:  # what is typed is never a special token
        assert not {0, 1, 2, ours.mask} & set(ours.encode(text, 100)[1:-1].tolist())
    cased = kind != "lower case by default"
    assert ours.decode(ours.encode("The fox", 10)) == ("The fox" if cased else "the fox")


def test_hidden_states_and_word_logits_are_those_of_transformers(folder: Path) -> None:
    ours, tokenizer, order = opened(folder), Tokenizer(folder), row_order(folder)
    assert order is not None
    theirs = AutoModelForMaskedLM.from_pretrained(folder, output_hidden_states=True).eval()
    for text in sample_texts()[:6]:
        states, logits = hidden(ours, tokenizer, text)
        with torch.no_grad():
            wanted = theirs(torch.tensor([[order[token] for token in tokenizer.encode(text, MAX_TOKENS)]]))
        torch.testing.assert_close(states, wanted.hidden_states[-1][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(logits, wanted.logits[0][:, order], atol=1e-4, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["vocab.txt", "tokenizer.json"])
def test_an_export_says_the_same_and_comes_back(folder: Path, tmp_path: Path, kind: str) -> None:
    copy = variant(folder, tmp_path / "copy", kind)
    ours, tokenizer, output = opened(copy), Tokenizer(copy), tmp_path / "out"
    write_folder(output, ours.state_dict(), read_shape(copy)[0])
    write_tokenizer(tokenizer, MAX_TOKENS, output)
    texts = [text for text in sample_texts() if "[" not in text]
    assert compare_tokens(tokenizer, output, texts, MAX_TOKENS).alike >= len(texts)
    theirs, back, again = AutoModel.from_pretrained(output).eval(), opened(output), Tokenizer(output)
    assert row_order(output) == list(range(tokenizer.size))
    for text in texts[:4]:
        states, _ = hidden(ours, tokenizer, text)
        assert again.encode(text, 99).tolist() == tokenizer.encode(text, 99).tolist()
        with torch.no_grad():
            wanted = theirs(torch.tensor(tokenizer.encode(text, MAX_TOKENS))[None]).last_hidden_state[0]
        torch.testing.assert_close(states, wanted, atol=1e-5, rtol=0)
    weights = back.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in ours.state_dict().items())


def test_a_tokenizer_elsewhere_orders_the_rows(folder: Path, tmp_path: Path) -> None:
    """The weights in one folder and the vocabulary in another."""
    shutil.copytree(folder, tmp_path / "weights")
    (tmp_path / "weights" / "vocab.txt").unlink()
    config = ModelConfig(initialise=tmp_path / "weights", tokenizer=folder)
    size = Tokenizer(folder).size
    with pytest.raises(UserError, match="are not the tokenizer's"):
        build_model(config, size - 1, None, [], seed=1)
    model = build_model(config, size, None, [TASKS["masked_words"]], seed=1)
    assert torch.equal(model.text.words.weight, opened(folder).text.words.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("[MASK]\n", "[mask]\n"), r"has no piece \[MASK\]"),
        (lambda text: text.replace("[unused1]", "[unused2]"), "has a piece twice"),
    ],
)
def test_a_vocabulary_that_is_not_berts_is_refused(folder: Path, tmp_path: Path, change: object, message: str) -> None:
    assert callable(change)
    (tmp_path / "vocab.txt").write_text(change((folder / "vocab.txt").read_text()))
    with pytest.raises(UserError, match=message):
        Tokenizer(tmp_path)


def test_another_setting_beside_the_same_pieces_is_another_vocabulary(folder: Path, tmp_path: Path) -> None:
    """A run would go on with texts that are cut in another way."""
    lower, same = (variant(folder, tmp_path / name, name) for name in ("lower case by default", "vocab.txt"))
    settings = json.loads((same / "tokenizer_config.json").read_text()) | {"model_max_length": 512}
    (same / "tokenizer_config.json").write_text(json.dumps(settings))
    assert vocabulary_hash(folder) == vocabulary_hash(same) != vocabulary_hash(lower)
    assert same_vocabulary(folder, same)
    assert not same_vocabulary(folder, lower)
