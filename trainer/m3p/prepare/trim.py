"""`m3p prepare vocabulary`: a pre-trained encoder with the pieces that some texts need, and no others.

Most of a multilingual encoder's parameters are rows of its word table for languages that a recipe never sees (Abdaoui et al.,
arXiv 2010.05609). Kept are the special pieces, those that the texts are cut into, and every piece of one character, so that
other words of these scripts can still be written. A text of these files is cut as before: a unigram model chooses the
likeliest cut, which is there, and of the others some are gone. Every kept row has its old numbers.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2

from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.export_files import open_to_group, write_tokenizer
from m3p.model.huggingface import read_shape
from m3p.prepare.staging import staged_folder
from m3p.prepare.text import read_paragraphs
from m3p.stored_files import open_tensors
from m3p.transformers_folder import CONFIG_FILE, WEIGHTS_FILE, read_json, weight_files
from m3p.vocabulary import SENTENCEPIECE_FILE, check_one_vocabulary

LONGEST = 1 << 20
"""Tokens of a paragraph that are looked at: all of it."""
CHECKED = 1000
"""Paragraphs that are cut together; the first ones by both vocabularies, at the end."""
UNIGRAM, NORMAL = 1, 1
"""sentencepiece's numbers of a type of model, and of pieces."""
WORD_TABLES = ("word_embeddings.weight", "lm_head.decoder.weight", "lm_head.decoder.bias", "lm_head.bias")
"""Ends of the names of tensors with a row or a number for each piece."""


class Trimmed(NamedTuple):
    """What trimming saved."""

    pieces: tuple[int, int]
    """Rows of the word table, before and after."""
    parameters: tuple[int, int]
    """Of the whole encoder."""
    bytes: tuple[int, int]
    """Of its files of weights."""


def trim_vocabulary(folder: Path, files: Sequence[Path], output: Path, overwrite: bool = False) -> Trimmed:
    """Write the encoder in `folder` with the pieces that the paragraphs of `files` need into `output`.

    Raises UserError: no such files, or a folder whose vocabulary is no unigram model of sentencepiece.
    """
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise UserError(f"no such text file: {', '.join(missing)}.")
    check_one_vocabulary(folder)
    tokenizer = Tokenizer(folder)
    model = _read_model(tokenizer)
    shape, rows = read_shape(folder)
    with staged_folder(output, WEIGHTS_FILE, overwrite) as staged:
        kept = _kept_ids(tokenizer, model, _paragraphs(files))
        vocabulary = staged / ".vocabulary"
        vocabulary.mkdir()
        _write_model(model, kept, vocabulary / SENTENCEPIECE_FILE)
        trimmed = Tokenizer(vocabulary)
        _check_cuts(tokenizer, trimmed, kept, islice(_paragraphs(files), CHECKED))
        write_tokenizer(trimmed, shape.positions - 2, staged)
        (vocabulary / SENTENCEPIECE_FILE).unlink()
        vocabulary.rmdir()
        config = read_json(folder / CONFIG_FILE, "want the config of an XLM-RoBERTa model")
        (staged / CONFIG_FILE).write_text(json.dumps({**config, "vocab_size": len(kept)}, indent=1) + "\n")
        parameters = _write_weights(folder, rows, kept, staged / WEIGHTS_FILE)
        open_to_group(staged)
        sizes = sum(path.stat().st_size for path in weight_files(folder)), (staged / WEIGHTS_FILE).stat().st_size
    return Trimmed((rows, len(kept)), parameters, sizes)


def _read_model(tokenizer: Tokenizer) -> Any:
    """Return the sentencepiece model of a tokenizer, as the library stores it. Raises UserError."""
    if tokenizer.path.name != SENTENCEPIECE_FILE:
        raise UserError(
            f"{tokenizer.path}: only a vocabulary of sentencepiece can be trimmed; put the model's own {SENTENCEPIECE_FILE} "
            "beside it, or take the folder as it is"
        )
    proto: Any = sentencepiece_model_pb2  # its classes are made at import
    model = proto.ModelProto.FromString(tokenizer.path.read_bytes())
    if model.trainer_spec.model_type != UNIGRAM:
        raise UserError(
            f"{tokenizer.path}: a model of merges (bpe), whose pieces are made of each other; only a unigram model, as XLM-R's, "
            "can be trimmed. Take the folder as it is"
        )
    return model


def _paragraphs(files: Iterable[Path]) -> Iterator[str]:
    return (paragraph for path in files for paragraph in read_paragraphs(path))


def _kept_ids(tokenizer: Tokenizer, model: Any, paragraphs: Iterator[str]) -> list[int]:
    """Return the ids to keep, in their order: specials, mask, pieces of one character or byte, and those of the paragraphs."""
    kept = {*range(tokenizer.first_piece), tokenizer.mask}
    kept |= {
        number + 1  # XLM-R's id of a piece of sentencepiece
        for number, piece in enumerate(model.pieces)
        if number >= 3 and (len(piece.piece) == 1 or piece.type != NORMAL)
    }
    while some := list(islice(paragraphs, CHECKED)):
        kept.update(tokenizer.encode_flat(some, LONGEST)[0].tolist())
    return sorted(kept)


def _write_model(model: Any, kept: Sequence[int], path: Path) -> None:
    """Write the sentencepiece model with the pieces of the ids `kept` alone."""
    wanted = {0, 1, 2, *(number - 1 for number in kept if 3 < number <= len(model.pieces))}
    pieces = [piece for number, piece in enumerate(model.pieces) if number in wanted]
    smaller = type(model)()
    smaller.CopyFrom(model)
    del smaller.pieces[:]
    smaller.pieces.extend(pieces)
    smaller.trainer_spec.vocab_size = len(pieces)
    path.write_bytes(smaller.SerializeToString())


def _check_cuts(before: Tokenizer, after: Tokenizer, kept: Sequence[int], paragraphs: Iterator[str]) -> None:
    """Compare how both vocabularies cut paragraphs."""
    texts = list(paragraphs)
    old, new = before.encode_flat(texts, LONGEST)[0], after.encode_flat(texts, LONGEST)[0]
    assert [kept[number] for number in new.tolist()] == old.tolist(), "the likeliest cut is kept"


def _write_weights(folder: Path, rows: int, kept: Sequence[int], path: Path) -> tuple[int, int]:
    """Write the weights with the rows `kept` of the word table; return how many parameters there were and are."""
    tensors, before = dict[str, torch.Tensor](), 0
    for file in weight_files(folder):
        with open_tensors(file) as opened:
            for name in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensor = opened.get_tensor(name)
                before += tensor.numel()
                per_piece = name.endswith(WORD_TABLES) and tensor.shape[0] == rows
                tensors[name] = tensor[torch.tensor(kept)].contiguous() if per_piece else tensor
    save_file(tensors, path, {"format": "pt"})
    return before, sum(tensor.numel() for tensor in tensors.values())
