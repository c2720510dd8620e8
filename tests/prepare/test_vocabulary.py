"""Of trainer/m3p/prepare/tokenizer.py; named apart from tests/data/test_tokenizer.py."""

from pathlib import Path

import pytest
import sentencepiece

from m3p.errors import UserError
from m3p.prepare.tokenizer import Algorithm, prepare_tokenizer
from m3p.vocabulary import SENTENCEPIECE_FILE

LINES = ["ein roter Kreis", "ein roter Stern", "赤い円がある", "赤い星がある", "赤い円", "ein Stern", "赤い星"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("\n".join(LINES), encoding="utf-8")
    return tmp_path / "text.txt"


def load(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE_FILE))


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_special_pieces_are_where_xlm_r_has_them(text: Path, tmp_path: Path, algorithm: Algorithm) -> None:
    pieces = prepare_tokenizer([text], tmp_path / "out", 40, algorithm)
    model = load(tmp_path / "out")
    assert pieces == model.get_piece_size() <= 40
    assert [model.id_to_piece(number) for number in range(3)] == ["<unk>", "<s>", "</s>"]
    assert model.pad_id() == -1
    assert all(model.unk_id() not in model.encode(line) for line in LINES)


def test_same_text_same_bytes(text: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare_tokenizer([text], tmp_path / name, 40)
    assert (tmp_path / "one" / SENTENCEPIECE_FILE).read_bytes() == (tmp_path / "two" / SENTENCEPIECE_FILE).read_bytes()


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_split_cjk_makes_each_character_a_piece(text: Path, tmp_path: Path, algorithm: Algorithm) -> None:
    prepare_tokenizer([text], tmp_path / "whole", 44, algorithm)
    prepare_tokenizer([text], tmp_path / "split", 44, algorithm, split_cjk=True)
    assert any(len(piece.strip("▁")) > 1 for piece in load(tmp_path / "whole").encode(LINES[2], out_type=str))
    assert load(tmp_path / "split").encode(LINES[2], out_type=str) == ["▁", *"赤い円がある"]
    assert load(tmp_path / "split").encode("ein 赤い円", out_type=str)[-4:] == ["▁", *"赤い円"]


def test_mistakes_are_named(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such text file: .*none\.txt"):
        prepare_tokenizer([text, tmp_path / "none.txt"], tmp_path / "out", 40)
    with pytest.raises(UserError, match="--vocabulary 5 does not fit"):
        prepare_tokenizer([text], tmp_path / "out", 5)
    with pytest.raises(UserError, match=r"--vocabulary 5000 does not fit.*too high"):
        prepare_tokenizer([text], tmp_path / "out", 5000, "bpe")
    assert not (tmp_path / "out").exists()
