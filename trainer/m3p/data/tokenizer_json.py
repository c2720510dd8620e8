"""A sentencepiece model as the `tokenizer.json` of the package `tokenizers`, which `transformers` reads.

`transformers` reads every XLM-R vocabulary as a unigram model with XLM-R's own rules. This file writes what the model is:
unigram or bpe, with or without byte fallback, with its own normalisation and handling of spaces.

The two libraries cut some texts differently, and nothing written in a tokenizer.json changes that:

- Names of special pieces that stand in a text (`<mask>`, `</s>`, `<0x0A>`): `transformers` reads them as the pieces, which
  it needs for filling masks. To us they are letters, so that no text smuggles in a special token.
- Letters and marks that sentencepiece composes and that are written apart: decomposed Hangul, kana with a separate voicing
  mark, halfwidth kana, several marks on one letter. `tokenizers` looks a rule up by grapheme, and only by short ones.
- Two cuts of a word with equal scores (`aaa` as `aa a` or `a aa`): sentencepiece adds scores in float32, `tokenizers` in
  float64, so rounding decides. It shows in long runs of one letter.
"""

import base64
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from m3p.errors import UserError
from m3p.vocabulary import MASK, SPECIALS

Json = dict[str, Any]

SPACE = "▁"

_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""Types of a piece, from sentencepiece_model.proto."""


def convert_sentencepiece(path: Path, by_word: bool) -> Json:
    """Return the content of tokenizer.json for the sentencepiece model `path`.

    `by_word` says that words can be cut one by one, which is faster. Raises UserError where the model has a feature that
    a tokenizer.json does not have.
    """
    proto: Any = sentencepiece_model_pb2  # its classes are made at import
    model = proto.ModelProto.FromString(path.read_bytes())
    _check(path, model)
    size = len(model.pieces) + 2
    tokens = [*SPECIALS, *(piece.piece for piece in model.pieces[3:]), MASK]
    if len(set(tokens)) != size:
        twice = next(token for token in (*SPECIALS, MASK) if tokens.count(token) > 1)
        raise UserError(f"{path}: has a piece {twice!r}, the name of a special token; train the vocabulary without it")
    special = [(number, token) for number, token in enumerate(SPECIALS)] + [(size - 1, MASK)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, token) for number, token in special],
        "normalizer": _normalizer(model.normalizer_spec),
        "pre_tokenizer": _split_before_spaces() if by_word else None,
        "post_processor": _frame(),
        "decoder": _decoder(),
        "model": _bpe(model, tokens) if model.trainer_spec.model_type == _BPE else _unigram(model, tokens),
    }


def _check(path: Path, model: Any) -> None:
    """Raise UserError where the model does what tokenizer.json cannot say."""
    trained, rules = model.trainer_spec, model.normalizer_spec
    wrong = ""
    if trained.model_type not in (_UNIGRAM, _BPE):
        wrong = "it is neither a unigram nor a bpe model"
    elif [piece.type for piece in model.pieces[:3]] != [_UNKNOWN, _CONTROL, _CONTROL]:
        wrong = "its first pieces are not <unk>, <s> and </s>"
    elif odd := [piece.piece for piece in model.pieces[3:] if piece.type not in (_NORMAL, _BYTE)]:
        wrong = f"its piece {odd[0]!r} is user-defined, unused or a control piece"
    elif trained.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        wrong = "it does not mark spaces by a ▁ before the word"
    if wrong:
        raise UserError(
            f"{path}: {wrong}, which XLM-R's tokenizer.json cannot say; train a vocabulary: m3p prepare tokenizer"
        )


def _added(number: int, token: str) -> Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **flags}


def _normalizer(rules: Any) -> Json:
    """Return sentencepiece's normalisation (normalizer.cc): the rules on characters, then the handling of spaces."""
    steps: list[Json] = []
    if rules.precompiled_charsmap:
        charsmap = base64.b64encode(rules.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if rules.remove_extra_whitespaces:
        # \A and \z, since ^ and $ are the ends of a line here. A written ▁ at the end counts as a space there.
        steps += [_replace(r"\A +|[ ▁]+\z", ""), _replace(" {2,}", " ")]
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    if rules.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _replace(regex: str, content: str) -> Json:
    return {"type": "Replace", "pattern": {"Regex": regex}, "content": content}


def _split_before_spaces() -> Json:
    return {"type": "Split", "pattern": {"String": SPACE}, "behavior": "MergedWithNext", "invert": False}


def _frame() -> Json:
    """Return the frames `<s> A </s>` and `<s> A </s> </s> B </s>` of XLM-R."""

    def special(name: str) -> Json:
        return {"SpecialToken": {"id": name, "type_id": 0}}

    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    start, end = special("<s>"), special("</s>")
    tokens = {name: {"id": name, "ids": [SPECIALS.index(name)], "tokens": [name]} for name in ("<s>", "</s>")}
    return {
        "type": "TemplateProcessing",
        "single": [start, first, end],
        "pair": [start, first, end, end, second, end],
        "special_tokens": tokens,
    }


def _decoder() -> Json:
    steps: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {"type": "Sequence", "decoders": steps}


def _unigram(model: Any, tokens: list[str]) -> Json:
    scores = [0.0] * len(SPECIALS) + [piece.score for piece in model.pieces[3:]] + [0.0]
    vocabulary = [[token, score] for token, score in zip(tokens, scores, strict=True)]
    unknown = SPECIALS.index("<unk>")
    return {
        "type": "Unigram",
        "unk_id": unknown,
        "vocab": vocabulary,
        "byte_fallback": model.trainer_spec.byte_fallback,
    }


def _bpe(model: Any, tokens: list[str]) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.trainer_spec.byte_fallback,
        "ignore_merges": False,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": _merges(model),
    }


def _merges(model: Any) -> list[list[str]]:
    """Return every way to put a piece together from two, in the order in which sentencepiece merges: by score.

    Of one piece's ways the longer left part comes first: merging from left to right leaves the shorter rest at the end.
    """
    normal = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    merges = []
    for piece in sorted(normal, key=lambda name: -normal[name]):  # stable: pieces of one score stay in order
        parts = ((piece[:at], piece[at:]) for at in range(len(piece) - 1, 0, -1))
        merges += [[left, right] for left, right in parts if left in normal and right in normal]
    return merges
