"""XLM-R's tokens: a sentencepiece model with fairseq's ids (piece id + 1, `<mask>` last)."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from trainer.errors import UserError

BOS, PAD, EOS, UNK = 0, 1, 2, 3
FILE_NAME = "sentencepiece.bpe.model"


class Tokenizer:
    """Text -> ids. `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, piece i -> i + 1, `<mask>` last."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        if not self.path.is_file():
            raise UserError(f"{self.path} is missing: model.tokenizer wants a folder with a {FILE_NAME}")
        self._load()

    def _load(self) -> None:
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        except RuntimeError as error:
            raise UserError(f"{self.path}: not a sentencepiece model ({error})") from error
        self.size = len(self._pieces) + 2
        """Vocabulary: the pieces, `<pad>` and `<mask>`."""
        self.mask = self.size - 1
        self.first_piece = 4
        """Ids from here to `mask` (not included) are ordinary pieces: what a random replacement is drawn from."""

    def encode(self, text: str, most: int) -> NDArray[np.int64]:
        """Return `<s>` pieces `</s>`, cut to `most` tokens in all: [L] with L <= most."""
        return self.encode_many([text], most)[0]

    def encode_many(self, texts: Sequence[str], most: int) -> list[NDArray[np.int64]]:
        """As `encode`, with one array for all: at 30 tokens, a call of numpy costs a tenth of what sentencepiece does.

        (Its own call for many texts starts a thread each time, and waits for it.)
        """
        encode, most = self._pieces.encode, most - 2
        flat: list[int] = []
        ends = [0]
        for text in texts:
            ids = encode(text)
            flat.append(BOS - 1)
            flat += ids if len(ids) <= most else ids[:most]
            flat.append(EOS - 1)
            ends.append(len(flat))
        whole = np.array(flat, np.int64)
        whole[whole == 0] = UNK - 1  # sentencepiece's own <unk> is 0
        whole += 1
        return [whole[start:end] for start, end in pairwise(ends)]

    @property
    def unknown(self) -> int:
        """The id of what the vocabulary does not know."""
        return UNK

    def piece(self, token: int) -> str:
        """Return one token as it is written in the vocabulary: `<mask>`, or `▁dog` where a word begins."""
        if token == self.mask:
            return "<mask>"
        return {BOS: "<s>", PAD: "<pad>", EOS: "</s>", UNK: "<unk>"}.get(token) or str(
            self._pieces.id_to_piece(token - 1)
        )

    def decode(self, ids: NDArray[np.int64]) -> str:
        """Return the text of `ids`, specials left out and `<mask>` shown as such."""
        words = [self._pieces.id_to_piece(int(i) - 1) if UNK < i < self.mask else "▁<mask>" for i in ids if i > UNK]
        return "".join(words).replace("▁", " ").strip()

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path = path
        self._load()
