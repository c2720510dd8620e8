"""BERT's WordPiece vocabularies (mBERT, LaBSE) with the ids that XLM-R's have in this program.

BERT's special pieces lie anywhere: [PAD] 0, [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103 in mBERT. Here 0 begins a text, 1 is
padding, 2 ends a text, 3 is what is unknown, and the mask is the last one. So a vocabulary is renumbered when it is read, and the
rows of a word table are put into that order (model/huggingface.py). What is exported has the new order throughout.
"""

import json
from pathlib import Path
from typing import Any

from m3p.errors import UserError

Json = dict[str, Any]

VOCAB_FILE = "vocab.txt"
"""BERT's list of pieces, one a line."""
BERT_SPECIALS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]")
"""BERT's names of what has the ids 0 to 3 here."""
BERT_MASK = "[MASK]"
SETTINGS = {"tokenize_chinese_chars": True, "strip_accents": None, "do_lower_case": True}
"""Fields of a tokenizer_config.json by which a vocab.txt cuts texts, and BERT's defaults, which `transformers` has too."""
CONTINUES = "##"
"""What a piece begins with that goes on inside a word."""


def is_wordpiece(content: Json) -> bool:
    """Tell whether a tokenizer.json is a WordPiece model."""
    return content["model"].get("type") == "WordPiece"


def read_vocab_txt(path: Path) -> Json:
    """Return a vocab.txt as the tokenizer.json that `transformers` makes of it, by the tokenizer_config.json beside it.

    Raises UserError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); put back the model's own file") from None
    pieces = text.removesuffix("\n").split("\n")
    if len(set(pieces)) != len(pieces):
        raise UserError(f"{path}: has a piece twice; put back the model's own file")
    settings = {**SETTINGS, **other_settings(path)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": pieces.index(name), "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}
            for name in (*BERT_SPECIALS, BERT_MASK) if name in pieces
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings["tokenize_chinese_chars"],
            "strip_accents": settings["strip_accents"],
            "lowercase": settings["do_lower_case"],  # a folder of a cased model says that it is not
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": CONTINUES, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": BERT_SPECIALS[3],
            "continuing_subword_prefix": CONTINUES,
            "max_input_chars_per_word": 100,
            "vocab": {piece: number for number, piece in enumerate(pieces)},
        },
    }  # fmt: skip


def other_settings(path: Path) -> Json:
    """Return by which settings the vocab.txt `path` cuts texts otherwise than by default. Raises UserError."""
    found = _settings(path.with_name("tokenizer_config.json"))
    return {name: found[name] for name, default in SETTINGS.items() if found.get(name, default) != default}


def _settings(path: Path) -> Json:
    """Return a tokenizer_config.json; nothing where there is none. Raises UserError."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken JSON ({error}); put back the model's own file") from None
    raise UserError(f"{path}: no JSON object; put back the model's own file")


def rows_in_order(path: Path, content: Json) -> list[int]:
    """Return, for each id of ours, the id that the file has: the special pieces first, then all others, then the mask.

    Raises UserError where there is no such vocabulary.
    """
    try:
        ids = {int(number): str(piece) for piece, number in content["model"]["vocab"].items()}
        ids |= {int(one["id"]): str(one["content"]) for one in content.get("added_tokens", [])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its vocabulary cannot be read ({error!r}); put back the model's own file") from error
    if sorted(ids) != list(range(len(ids))):
        raise UserError(f"{path}: its ids are not 0 to {len(ids) - 1}; put back the model's own file")
    places = {piece: number for number, piece in ids.items()}
    if missing := [name for name in (*BERT_SPECIALS, BERT_MASK) if name not in places]:
        raise UserError(f"{path}: has no piece {', '.join(missing)}; want BERT's vocabulary, or XLM-R's")
    first, last = [places[name] for name in BERT_SPECIALS], places[BERT_MASK]
    return [*first, *(number for number in range(len(ids)) if number not in {*first, last}), last]


def renumbered(path: Path, content: Json) -> Json:
    """Return a WordPiece tokenizer.json with our ids, and with a frame of [CLS] and [SEP] around texts. Raises UserError."""
    ours = {theirs: number for number, theirs in enumerate(rows_in_order(path, content))}
    model = dict(content["model"])
    model["vocab"] = {piece: ours[int(number)] for piece, number in model["vocab"].items()}
    added = [{**one, "id": ours[int(one["id"])]} for one in content.get("added_tokens", [])]
    added.sort(key=lambda one: int(one["id"]))
    return {**content, "model": model, "added_tokens": added, "post_processor": _frame()}


def _frame() -> Json:
    """Return the frames `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`."""

    def special(name: str) -> Json:
        return {"SpecialToken": {"id": name, "type_id": 0}}

    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    start, end = special(BERT_SPECIALS[0]), special(BERT_SPECIALS[2])
    tokens = {
        name: {"id": name, "ids": [number], "tokens": [name]}
        for number, name in enumerate(BERT_SPECIALS)
        if number in (0, 2)
    }
    return {
        "type": "TemplateProcessing",
        "single": [start, first, end],
        "pair": [start, first, end, second, end],
        "special_tokens": tokens,
    }
