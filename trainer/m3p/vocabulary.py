"""The file that holds a folder's vocabulary: XLM-R's sentencepiece model, tokenizer.json of `transformers`, BERT's vocab.txt."""

import filecmp
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3p.errors import UserError
from m3p.stored_files import check_no_pointer
from m3p.transformers_folder import read_json
from m3p.wordpiece import (
    BERT_MASK,
    BERT_SPECIALS,
    VOCAB_FILE,
    is_wordpiece,
    other_settings,
    read_vocab_txt,
    renumbered,
    rows_in_order,
)

SENTENCEPIECE_FILE = "sentencepiece.bpe.model"
"""XLM-R's name for a sentencepiece model, whether it is unigram or bpe."""
TOKENIZER_FILE = "tokenizer.json"
"""The file of the package `tokenizers`. `transformers` 5 saves this one alone."""

MAX_BYTES = 1 << 28
"""Largest vocabulary file that is read. XLM-R's tokenizer.json, of 250,002 pieces, has 17 MB."""

SCORE = 1e-4
"""Difference of the scores of a piece in two files, as a share: one keeps float32, the other decimals."""

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
"""XLM-R's pieces of ids 0 to 3."""
MASK = "<mask>"

_FILES = (SENTENCEPIECE_FILE, TOKENIZER_FILE, VOCAB_FILE)
"""Files of a vocabulary; a folder with several is read from the first."""


def vocabulary_file(folder: Path) -> Path:
    """Return the sentencepiece model of `folder`, else its tokenizer.json, else its vocab.txt. Raises UserError."""
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{folder / SENTENCEPIECE_FILE} is missing: model.tokenizer wants a folder with a {SENTENCEPIECE_FILE}, a "
            f"{TOKENIZER_FILE} or BERT's {VOCAB_FILE}"
        )
    check_no_pointer(path)
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: has {path.stat().st_size:,} bytes; a vocabulary has at most {MAX_BYTES:,}")
    return path


def has_vocabulary(folder: Path) -> bool:
    """Tell whether `folder` holds a vocabulary file."""
    return any((folder / name).is_file() for name in _FILES)


def row_order(folder: Path) -> list[int] | None:
    """Return, for each id of ours, the row that a word table of this folder has for it; None where it is the same row.

    Raises UserError.
    """
    path = vocabulary_file(folder)
    if path.name == SENTENCEPIECE_FILE:
        return None
    content = _read_content(path)
    return rows_in_order(path, content) if is_wordpiece(content) else None


def same_vocabulary(one: Path, other: Path) -> bool:
    """Tell whether two folders hold the same pieces under the same ids, in files of either kind. Raises UserError.

    Two equal vocab.txt are two vocabularies where settings beside them cut texts in different ways.
    """
    first, second = vocabulary_file(one), vocabulary_file(other)
    if filecmp.cmp(first, second, shallow=False):
        return settings_beside(first) == settings_beside(second)
    return first.name != second.name and read_pieces(first) == read_pieces(second)


def check_one_vocabulary(folder: Path) -> None:
    """Raise UserError where the files of a folder say two vocabularies: which one its weights were trained with, nobody knows.

    A tokenizer.json that was saved over an older sentencepiece model, or words that were added to a vocabulary beside its file.
    """
    path, other = vocabulary_file(folder), folder / TOKENIZER_FILE
    if path.name == SENTENCEPIECE_FILE and other.is_file():
        if not _is_like(path, other):
            raise UserError(
                f"{other} has other pieces than {path.name} beside it, or other scores; `transformers` reads {other.name}: take "
                "the file away that does not belong to the weights"
            )
    elif path != other and (words := set(_added_words(folder))) and (added := sorted(words - set(read_pieces(path)))):
        raise UserError(
            f"{folder}: {len(added):,} words were added to {path.name}, such as {added[0]!r}, which do not stand in it; write "
            'one file that has them: python -c "from transformers import AutoTokenizer; '
            f"AutoTokenizer.from_pretrained('{folder}').save_pretrained('NEW')\", and put NEW/{other.name} in the place of "
            f"{path.name}"
        )


def _is_like(model: Path, other: Path) -> bool:
    """Tell whether a sentencepiece model and a tokenizer.json have the same pieces, and the same scores up to rounding."""
    if read_pieces(model) != read_pieces(other):
        return False
    content = _read_content(other)["model"]
    if content["type"] != "Unigram":
        return True
    import sentencepiece

    scores = sentencepiece.SentencePieceProcessor(model_file=str(model)).get_score
    ordinary = content["vocab"][len(SPECIALS) : -1]
    return all(abs(score - scores(number)) <= SCORE * (1 + abs(score)) for number, (_, score) in enumerate(ordinary, 3))


def _added_words(folder: Path) -> Iterator[str]:
    """Yield the words that `transformers` has noted as added to a vocabulary, without special tokens. Raises UserError."""
    for name, field in (("added_tokens.json", None), ("tokenizer_config.json", "added_tokens_decoder")):
        if not (folder / name).is_file():
            continue
        content = read_json(folder / name, "the settings of a tokenizer")
        if field is None:
            yield from (word for word in content if not (word[:1] in "<[" and word[-1:] in ">]"))
        else:
            entries = (content.get(field) or {}).values()
            yield from (str(one["content"]) for one in entries if not one.get("special") and "content" in one)


def settings_beside(path: Path) -> dict[str, Any]:
    """Return what a vocabulary file follows that does not stand in it: a vocab.txt's settings that are not BERT's defaults."""
    return other_settings(path) if path.name == VOCAB_FILE else {}


def read_pieces(path: Path) -> list[str]:
    """Return the pieces of a vocabulary file, by id. Raises UserError."""
    if path.name != SENTENCEPIECE_FILE:
        return pieces_of(path, read_tokenizer_json(path))
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
        raise UserError(f"{path}: not a sentencepiece model ({error})") from error
    return [*SPECIALS, *(model.id_to_piece(number) for number in range(3, len(model))), MASK]


def read_tokenizer_json(path: Path) -> dict[str, Any]:
    """Return the content of a tokenizer.json, or a vocab.txt as one; a WordPiece model with our ids. Raises UserError."""
    content = _read_content(path)
    return renumbered(path, content) if is_wordpiece(content) else content


def _read_content(path: Path) -> dict[str, Any]:
    """Return a tokenizer.json as it is, or a vocab.txt as one. Raises UserError where it is no JSON object with a model."""
    if path.name == VOCAB_FILE:
        return read_vocab_txt(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content["model"], dict) and isinstance(content.get("added_tokens", []), list):
            return dict(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not the tokenizer of a model ({error}); put back the model's own file") from error
    raise UserError(f"{path}: not the tokenizer of a model; put back the model's own file")


def pieces_of(path: Path, content: dict[str, Any]) -> list[str]:
    """Return the pieces of the tokenizer.json `path`, by id, those that were added to the model too.

    Raises UserError where the ids of the special pieces are not XLM-R's.
    """
    kind, vocabulary = content["model"].get("type"), content["model"].get("vocab")
    try:
        if kind == "Unigram":
            ids = {number: str(piece) for number, (piece, _) in enumerate(vocabulary)}
        elif kind in ("BPE", "WordPiece"):
            ids = {int(number): str(piece) for piece, number in vocabulary.items()}
        else:
            raise UserError(
                f"{path}: a {kind} model; want XLM-R's vocabulary, a Unigram or BPE model, or BERT's, WordPiece"
            )
        added = {int(one["id"]): str(one["content"]) for one in content.get("added_tokens", [])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its vocabulary cannot be read ({error!r}); put back the model's own file") from error
    if (
        wrong := next((number for number in added if ids.get(number, added[number]) != added[number]), None)
    ) is not None:
        raise UserError(
            f"{path}: id {wrong} is {ids[wrong]!r} in its model and {added[wrong]!r} in added_tokens; put back its file"
        )
    ids |= added
    if sorted(ids) != list(range(len(ids))):
        raise UserError(f"{path}: its ids are not 0 to {len(ids) - 1}; put back the model's own file")
    pieces = [ids[number] for number in range(len(ids))]
    if kind == "WordPiece":  # whose ids have been put into order
        return pieces
    if tuple(pieces[: len(SPECIALS)]) != SPECIALS or MASK not in pieces:
        raise UserError(
            f"{path}: its first pieces are {', '.join(pieces[:4])}; want XLM-R's vocabulary: {', '.join(SPECIALS)} first, and "
            f"{MASK} among the others"
        )
    return pieces


def special_names(content: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the special pieces of a tokenizer.json: of the ids 0 to 3, and of the mask."""
    return (*BERT_SPECIALS, BERT_MASK) if is_wordpiece(content) else (*SPECIALS, MASK)
