"""Train a sentencepiece vocabulary in the form that XLM-R's id order expects."""

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import sentencepiece

from m3p.errors import UserError
from m3p.prepare.staging import staged_folder
from m3p.prepare.text import read_paragraphs
from m3p.vocabulary import SENTENCEPIECE_FILE

Algorithm = Literal["unigram", "bpe"]

BOUNDARY = "\u2016"
"""A character that sentencepiece removes in training and learns no piece across."""

CJK = re.compile("[\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff]")
"""Japanese kana and the Han characters of the basic plane."""


def part_characters(text: str) -> str:
    """Put a boundary on both sides of every Chinese or Japanese character, so that each becomes its own piece."""
    return CJK.sub(lambda match: f"{BOUNDARY}{match.group()}{BOUNDARY}", text.replace(BOUNDARY, " "))


def train_tokenizer(
    lines: Iterable[str], output: Path, vocabulary: int, algorithm: Algorithm = "unigram", split_cjk: bool = False
) -> int:
    """Train on `lines` and write `sentencepiece.bpe.model` into the folder `output`; return its number of pieces.

    The pieces <unk>, <s> and </s> have ids 0, 1 and 2 as in XLM-R's file, so that a token id is the piece id + 1.
    Every character of the text gets a piece. One thread and no sampling: the same lines give the same bytes.
    `split_cjk` keeps whole phrases of small, repetitive Chinese and Japanese corpora from becoming one piece.
    Raises UserError where the text and `vocabulary` do not fit.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part_characters(line) if split_cjk else line.replace(BOUNDARY, " ") for line in lines),
            model_writer=model,
            model_type=algorithm,
            vocab_size=vocabulary,
            hard_vocab_limit=algorithm == "bpe",
            character_coverage=1.0,
            max_sentence_length=1 << 16,
            pretokenization_delimiter=BOUNDARY,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"--vocabulary {vocabulary} does not fit this text: {str(error).splitlines()[-1]}") from None
    content = model.getvalue()
    (output / SENTENCEPIECE_FILE).write_bytes(content)
    return int(sentencepiece.SentencePieceProcessor(model_proto=content).get_piece_size())


def prepare_tokenizer(
    files: list[Path],
    output: Path,
    vocabulary: int,
    algorithm: Algorithm = "unigram",
    split_cjk: bool = False,
    overwrite: bool = False,
) -> int:
    """Train on text files, one paragraph a line; return the number of pieces. Raises UserError."""
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise UserError(f"no such text file: {', '.join(missing)}.")
    with staged_folder(output, SENTENCEPIECE_FILE, overwrite) as staged:
        lines = (paragraph for path in files for paragraph in read_paragraphs(path))
        return train_tokenizer(lines, staged, vocabulary, algorithm, split_cjk)
