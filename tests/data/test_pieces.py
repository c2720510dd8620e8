"""A folder that has a tokenizer.json alone, as `transformers` 5 saves XLM-R."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from m3p.data.pieces import TokenizerJson, read_pieces_of
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.sample_texts import sample_texts
from m3p.vocabulary import (
    SENTENCEPIECE_FILE,
    TOKENIZER_FILE,
    check_one_vocabulary,
    has_vocabulary,
    same_vocabulary,
    vocabulary_file,
)


@pytest.fixture(scope="module")
def saved(xlmr_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `save_pretrained` writes."""
    folder = tmp_path_factory.mktemp("saved")
    AutoTokenizer.from_pretrained(xlmr_folder).save_pretrained(folder)
    shutil.copy(xlmr_folder / "config.json", folder)
    assert not list(folder.glob("*.model"))
    return folder


def change(folder: Path, to: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """Write another tokenizer.json into `to`."""
    content = json.loads((folder / TOKENIZER_FILE).read_text())
    edit(content)
    (to / TOKENIZER_FILE).write_text(json.dumps(content))
    return to


def test_ids_are_those_of_transformers(saved: Path) -> None:
    ours, theirs = Tokenizer(saved), AutoTokenizer.from_pretrained(saved)
    assert isinstance(ours.pieces, TokenizerJson)
    assert ours.by_word
    assert (ours.size, ours.mask) == (len(theirs), theirs.mask_token_id)
    for text in [*sample_texts(), "", "a" * 500]:
        assert ours.encode(text, 1 << 20).tolist() == theirs(text)["input_ids"], text
        assert ours.encode(text, 12).tolist() == theirs(text, truncation=True, max_length=12)["input_ids"], text


@given(text=st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<" not in text))
def test_any_text_is_cut_as_transformers_does(saved: Path, text: str) -> None:
    ours, theirs = open_both(saved)
    assert ours.encode(text, 1 << 20).tolist() == theirs(text)["input_ids"]


_OPENED: dict[Path, tuple[Tokenizer, Any]] = {}


def open_both(folder: Path) -> tuple[Tokenizer, Any]:
    if folder not in _OPENED:
        _OPENED[folder] = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    return _OPENED[folder]


def test_the_same_pieces_in_either_file_are_one_vocabulary(saved: Path, xlmr_folder: Path, tmp_path: Path) -> None:
    assert same_vocabulary(saved, xlmr_folder)
    ours, model = Tokenizer(saved), Tokenizer(xlmr_folder)
    assert [ours.piece(token) for token in range(ours.size)] == [model.piece(token) for token in range(model.size)]
    text = "Zwei Hunde laufen über den Strand"
    assert ours.decode(ours.encode(text, 64)) == text
    other = change(saved, tmp_path, lambda content: content["model"]["vocab"][9].__setitem__(0, "▁zebra"))
    assert not same_vocabulary(other, xlmr_folder)
    assert not same_vocabulary(other, saved)


def test_a_text_cannot_smuggle_in_a_special_token(saved: Path) -> None:
    ours = Tokenizer(saved)
    for text in ("<mask>", "dog <mask> tree", "</s>", "<s><pad>", " <mask> ", "▁<mask>"):
        ids = ours.encode(text, 64).tolist()[1:-1]
        assert ids
        assert all(3 <= token < ours.mask for token in ids), text


def test_tokens_that_were_added_are_whole(saved: Path, tmp_path: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(saved)
    theirs.add_tokens(["zebrakux"])
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer(tmp_path)
    assert ours.size == ours.mask + 2
    for text in ("a zebrakux runs", "zebrakux", "zebrakuxe"):
        assert ours.encode(text, 64).tolist() == theirs(text)["input_ids"], text


@pytest.mark.parametrize(
    "flags", [{"single_word": True}, {"lstrip": True, "rstrip": True}, {"normalized": False}, {}], ids=str
)
def test_words_that_were_added_are_found_as_transformers_finds_them(
    saved: Path, tmp_path: Path, flags: dict[str, bool]
) -> None:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    size = Tokenizer(saved).size
    change(saved, tmp_path, lambda c: c["added_tokens"].append({"id": size, "content": "zork", **plain, **flags}))
    ours, theirs = Tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a dog plays with zork in the snow", "zork", "xzorky zork.", "the ZORK and zork zork"):
        assert ours.encode(text, 64).tolist() == theirs(text)["input_ids"], text


def both(saved: Path, xlmr_folder: Path, to: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copy(xlmr_folder / SENTENCEPIECE_FILE, to)
    return change(saved, to, edit)


def test_a_folder_with_two_files_of_one_vocabulary_is_taken(saved: Path, xlmr_folder: Path, tmp_path: Path) -> None:
    check_one_vocabulary(xlmr_folder)
    check_one_vocabulary(saved)
    check_one_vocabulary(both(saved, xlmr_folder, tmp_path, lambda content: None))
    (tmp_path / TOKENIZER_FILE).unlink()
    special = {"content": "<new>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"999": special}}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<mask>": 300}))
    check_one_vocabulary(tmp_path)


def swap(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary[50][1], vocabulary[51][1] = vocabulary[51][1] - 1, vocabulary[50][1]


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["model"]["vocab"][9].__setitem__(0, "▁zebra"),
        lambda content: content["added_tokens"].append({"id": len(content["model"]["vocab"]), "content": "zebra"}),
        swap,
    ],
)
def test_a_folder_with_two_vocabularies_is_refused(
    saved: Path, xlmr_folder: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json has other pieces than sentencepiece\.bpe\.model beside it"):
        check_one_vocabulary(both(saved, xlmr_folder, tmp_path, edit))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"zebrakux": 402, "<mask>": 401}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"402": {"content": "zebrakux", "special": False}}}),
    ],
)
def test_words_added_beside_a_vocabulary_are_named_and_the_way_out_leads_out(
    xlmr_folder: Path, tmp_path: Path, name: str, content: dict[str, Any]
) -> None:
    shutil.copytree(xlmr_folder, tmp_path, dirs_exist_ok=True)
    size = Tokenizer(tmp_path).size
    (tmp_path / name).write_text(json.dumps(content).replace("402", str(size)).replace("401", str(size - 1)))
    with pytest.raises(
        UserError, match=r"1 words were added to sentencepiece\.bpe\.model, such as 'zebrakux'"
    ) as caught:
        check_one_vocabulary(tmp_path)
    assert "AutoTokenizer.from_pretrained" in str(caught.value)
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "NEW")
    shutil.copy(tmp_path / "NEW" / TOKENIZER_FILE, tmp_path)
    (tmp_path / SENTENCEPIECE_FILE).unlink()
    check_one_vocabulary(tmp_path)
    assert Tokenizer(tmp_path).encode("zebrakux", 64).tolist() == [0, size, 2]


def test_it_goes_to_a_worker_by_its_path(saved: Path) -> None:
    content = pickle.dumps(Tokenizer(saved))
    assert len(content) < 1000
    assert pickle.loads(content).encode("dog", 64).tolist() == Tokenizer(saved).encode("dog", 64).tolist()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["model"].update(type="WordLevel"), "a WordLevel model; want XLM-R's vocabulary"),
        (lambda c: c["model"].update(type="WordPiece"), "its vocabulary cannot be read"),
        (lambda c: c["model"]["vocab"].reverse(), r"id 0 is '<mask>' in its model and '<s>' in added_tokens"),
        (
            lambda c: (c["model"]["vocab"].reverse(), c["added_tokens"].clear()),
            "its first pieces are .*; want XLM-R's vocabulary: <s>, <pad>",
        ),
        (lambda c: c["model"].update(vocab=None), "its vocabulary cannot be read"),
        (lambda c: c["model"].update(vocab=[["<s>"]]), "its vocabulary cannot be read"),
        (lambda c: c["added_tokens"].append({"id": 9000, "content": "far"}), r"its ids are not 0 to \d+"),
        (lambda c: c.pop("model"), "not the tokenizer of a model"),
        (lambda c: c.update(model=[]), "not the tokenizer of a model"),
        (lambda c: c.update(normalizer={"type": "Strange"}), "`tokenizers` cannot read it"),
    ],
)
def test_another_file_is_refused_by_name(
    saved: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/tokenizer.json: {message}"):
        Tokenizer(change(saved, tmp_path, edit))


def test_a_file_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / TOKENIZER_FILE).write_text("[" * 200_000)
    assert has_vocabulary(tmp_path)
    with pytest.raises(UserError, match="not the tokenizer of a model"):
        Tokenizer(tmp_path)
    monkeypatch.setattr("m3p.vocabulary.MAX_BYTES", 1000)
    with pytest.raises(UserError, match=r"has 200,000 bytes; a vocabulary has at most 1,000"):
        Tokenizer(tmp_path)


def test_a_file_that_is_named_is_all_that_a_folder_lacks_and_a_broken_one_is_put_back(
    saved: Path, xlmr_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"wants a folder with a (\S+), a (\S+) or BERT's (\S+)$") as caught:
        vocabulary_file(tmp_path)
    *_, model, _, content, _, _, words = str(caught.value).replace(",", "").split()
    whole = {
        model: (xlmr_folder / model).read_bytes(),
        content: (saved / content).read_bytes(),
        words: "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "cat"]).encode(),
    }
    for name, good in whole.items():
        path = tmp_path / name
        path.write_bytes(good)
        assert Tokenizer(tmp_path).encode("dog", 9).size >= 3
        path.write_bytes(b"\xff\0 broken")
        with pytest.raises(UserError, match=re.escape(str(path))):
            Tokenizer(tmp_path)
        path.write_bytes(good)  # the model's own file again
        assert Tokenizer(tmp_path).size == read_pieces_of(path).size
        path.unlink()
