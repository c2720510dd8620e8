"""What cuts a word into pieces: sentencepiece for its own models, `tokenizers` for a tokenizer.json and BERT's vocab.txt.

Both give XLM-R's ids (fairseq's): `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3. A text never gives a special token, whatever is
typed: `<mask>` is cut into letters.
"""

import json
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from m3p.errors import UserError
from m3p.vocabulary import MASK, SENTENCEPIECE_FILE, SPECIALS, pieces_of, read_tokenizer_json, special_names
from m3p.wordpiece import CONTINUES, is_wordpiece

BOS, PAD, EOS, UNK = range(len(SPECIALS))


class Pieces(Protocol):
    """A vocabulary with the rules that cut a text into its pieces."""

    size: int
    """Ids in all."""
    mask: int
    """The id of `<mask>`; ordinary pieces lie from 4 up to it."""
    specials: tuple[str, ...]
    """Names of the ids 0 to 3 and of the mask, as `transformers` knows them."""
    by_word: bool
    """Whether a text's pieces are those of its words, cut alone."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without a frame."""
        ...

    def piece(self, token: int) -> str:
        """Return one token as the vocabulary writes it."""
        ...


def read_pieces_of(path: Path) -> Pieces:
    """Open a vocabulary file of either kind. Raises UserError."""
    return SentencePiece(path) if path.name == SENTENCEPIECE_FILE else TokenizerJson(path)


class SentencePiece:
    """A sentencepiece model: piece i has the id i + 1, `<mask>` is the last."""

    specials: tuple[str, ...] = (*SPECIALS, MASK)

    def __init__(self, path: Path) -> None:
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except RuntimeError as error:
            raise UserError(f"{path}: not a sentencepiece model ({error})") from error
        self._pieces = [*SPECIALS, *(self.model.id_to_piece(number) for number in range(3, len(self.model))), MASK]
        self.size = len(self._pieces)
        self.mask = self.size - 1
        self.by_word = _splits_at_spaces(self, self._pieces)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; sentencepiece's own id of `<unk>` is 0."""
        return [piece + 1 if piece else UNK for piece in self.model.encode(text)]

    def piece(self, token: int) -> str:
        """Return one token as the vocabulary writes it: `<mask>`, or `▁dog` where a word begins."""
        return self._pieces[token]

    def is_unigram(self) -> bool:
        """Tell whether it cuts by the sum of the pieces' scores."""
        proto: Any = sentencepiece_model_pb2  # its classes are made at import
        return bool(proto.ModelProto.FromString(self.model.serialized_model_proto()).trainer_spec.model_type == 1)


class TokenizerJson:
    """A tokenizer.json (or a vocab.txt as one), read as the package `tokenizers` reads it, as `transformers` does."""

    def __init__(self, path: Path) -> None:
        content = read_tokenizer_json(path)
        pieces, self.specials = pieces_of(path, content), special_names(content)
        self.size = len(pieces)
        self.mask = pieces.index(self.specials[-1])
        self._special = {*range(len(SPECIALS)), self.mask}
        added = content.get("added_tokens", [])
        self._special |= {int(one["id"]) for one in added if one.get("special")}
        try:
            self._model = tokenizers.Tokenizer.from_str(json.dumps(_without_specials(content, {*self.specials})))
        except Exception as error:  # `tokenizers` raises nothing narrower
            raise UserError(f"{path}: `tokenizers` cannot read it ({error}); put back the model's own file") from error
        self._pieces = self._shown(pieces) if is_wordpiece(content) else pieces
        splits = _bert_splits(content) if is_wordpiece(content) else _splits_at_spaces(self, self._pieces)
        # Whether an added word stands alone, `tokenizers` sees by the letters around it: a ▁ in place of a space counts as one.
        self.by_word = splits and not any(" " in str(one["content"]) or one.get("single_word") for one in added)

    def _shown(self, pieces: list[str]) -> list[str]:
        """Return WordPiece's pieces as sentencepiece writes them: `▁dog` where a word begins, `s` for `##s`."""
        return [
            piece
            if number in self._special
            else piece.removeprefix(CONTINUES)
            if piece.startswith(CONTINUES)
            else f"▁{piece}"
            for number, piece in enumerate(pieces)
        ]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ids = self._model.encode(text, add_special_tokens=False).ids
        return [UNK if token in self._special else token for token in ids]

    def piece(self, token: int) -> str:
        """Return one token as the vocabulary writes it: `<mask>`, or `▁dog` where a word begins."""
        return self._pieces[token]


def _without_specials(content: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return a tokenizer.json that cuts the `names` of special tokens into letters, and frames, cuts and pads nothing."""
    model = dict(content["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [[_hidden(piece, names), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {_hidden(piece, names): number for piece, number in model["vocab"].items()}
        model["unk_token"] = model.get("unk_token") and _hidden(model["unk_token"], names)
    added = [one for one in content.get("added_tokens", []) if not one.get("special")]
    nothing = {"post_processor": None, "truncation": None, "padding": None}
    return {**content, "model": model, "added_tokens": added, **nothing}


def _hidden(piece: str, names: set[str]) -> str:
    """Return a name with a space inside for a special piece: no normalised text has one."""
    return f" {piece} " if piece in names else piece


def _bert_splits(content: dict[str, Any]) -> bool:
    """Tell whether a WordPiece model cuts words alone: by BERT's own rules, which look at one letter at a time."""
    rules, cut = ((content.get(name) or {}).get("type") for name in ("normalizer", "pre_tokenizer"))
    return rules in (None, "BertNormalizer") and cut == "BertPreTokenizer"


def _splits_at_spaces(vocabulary: Pieces, pieces: list[str]) -> bool:
    """Tell whether words are cut alone as they are in a text; XLM-R's model does so, which sentencepiece calls default."""
    if "▁" not in pieces or any("▁" in piece[1:] for piece in pieces):
        return False
    alone = vocabulary.encode("a")
    return vocabulary.encode("a a") == vocabulary.encode(" a  a ") == alone + alone
