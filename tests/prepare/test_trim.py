"""A trimmed encoder says of the texts that it was trimmed to what the whole one says."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.model.build import build_model
from m3p.model.config import ModelConfig
from m3p.prepare.tokenizer import prepare_tokenizer
from m3p.prepare.trim import trim_vocabulary
from tests.xlmr import TEXTS

KEPT = [text for text in TEXTS if text.isascii() or "ü" in text]
"""English and German."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("\n".join(KEPT) + "\n", encoding="utf-8")
    return tmp_path / "text.txt"


def states(folder: Path, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = AutoModel.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state
    return found


def test_the_same_pieces_and_the_same_numbers(xlmr_folder: Path, text: Path, tmp_path: Path) -> None:
    found = trim_vocabulary(xlmr_folder, [text], tmp_path / "small")
    whole, small = Tokenizer(xlmr_folder), Tokenizer(tmp_path / "small")
    assert found.pieces == (whole.size, small.size)
    assert small.size < whole.size
    assert found.parameters[0] - found.parameters[1] == 32 * (whole.size - small.size)
    assert found.bytes[1] < found.bytes[0]
    for one in KEPT:
        before, after = whole.encode_flat([one], 64)[0].tolist(), small.encode_flat([one], 64)[0].tolist()
        assert [whole.pieces.piece(number) for number in before] == [small.pieces.piece(number) for number in after]
        np.testing.assert_array_equal(states(xlmr_folder, before), states(tmp_path / "small", after))
        assert AutoTokenizer.from_pretrained(tmp_path / "small")(one)["input_ids"] == after


def test_other_words_of_known_characters_can_be_written(xlmr_folder: Path, text: Path, tmp_path: Path) -> None:
    trim_vocabulary(xlmr_folder, [text], tmp_path / "small")
    small = Tokenizer(tmp_path / "small")
    for one in ("hound", "собака", "犬猫"):  # of which no longer piece is left
        ids = small.encode_flat([one], 64)[0].tolist()
        assert 3 not in ids
        assert "".join(small.pieces.piece(number) for number in ids[1:-1]).lstrip("▁") == one


def test_a_recipe_starts_from_it(xlmr_folder: Path, text: Path, tmp_path: Path) -> None:
    trim_vocabulary(xlmr_folder, [text], tmp_path / "small")
    small = Tokenizer(tmp_path / "small")
    model = build_model(ModelConfig(initialise=tmp_path / "small"), small.size, None, [], seed=0)
    assert model.text.words.num_embeddings == small.size


def test_what_cannot_be_trimmed_is_refused(xlmr_folder: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such text file"):
        trim_vocabulary(xlmr_folder, [tmp_path / "none.txt"], tmp_path / "small")
    merges = tmp_path / "merges"
    prepare_tokenizer([text], merges, 60, "bpe")
    with pytest.raises(UserError, match="a model of merges"):
        trim_vocabulary(merges, [text], tmp_path / "small")
    trim_vocabulary(xlmr_folder, [text], tmp_path / "small")
    (tmp_path / "small" / "sentencepiece.bpe.model").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json: only a vocabulary of sentencepiece"):
        trim_vocabulary(tmp_path / "small", [text], tmp_path / "smaller")


def test_a_folder_of_two_vocabularies_is_not_trimmed(xlmr_folder: Path, text: Path, tmp_path: Path) -> None:
    shutil.copytree(xlmr_folder, tmp_path / "start")
    (tmp_path / "start" / "added_tokens.json").write_text('{"zebrakux": 999}')
    with pytest.raises(UserError, match="1 words were added to"):
        trim_vocabulary(tmp_path / "start", [text], tmp_path / "small")
