"""XLM-R's tokens: a sentencepiece model with fairseq's ids (piece id + 1, `<mask>` last).

Words are tokenised one by one, and the pieces of words met before are remembered, as Hugging Face's `tokenizers` does: no
piece of such a model holds a space inside, so that the best pieces of a text are those of its words. (sentencepiece, given
the whole text, adds up scores in float32; where two ways to cut a word score alike, it decides by the words before.)
"""

from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from m3p.errors import UserError

BOS, PAD, EOS, UNK = 0, 1, 2, 3
SENTENCEPIECE_FILE = "sentencepiece.bpe.model"

MOST_WORDS = 100_000
"""Words that a process remembers, some 20 MB; those met later are tokenised again each time."""
LONGEST_WORD = 32
"""Letters. What is longer is no word that comes again, but a sentence of a script without spaces."""
BYTES = 4
"""Of an id among the remembered ones: a C int."""


class _Words(dict[str, bytes]):
    """Word -> its ids as bytes, which `bytes.join` puts together faster than lists of numbers."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        # sentencepiece's own <unk> is 0. (No numpy: a word has three ids.)
        found = array("i", [piece + 1 if piece else UNK for piece in self._encode(word)]).tobytes()
        if len(self) < MOST_WORDS and len(word) <= LONGEST_WORD:
            self[word] = found
        return found


class Tokenizer:
    """Text -> ids. `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, piece i -> i + 1, `<mask>` last."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / SENTENCEPIECE_FILE
        if not self.path.is_file():
            raise UserError(f"{self.path} is missing: model.tokenizer wants a folder with a {SENTENCEPIECE_FILE}")
        self._load()

    def _load(self) -> None:
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        except RuntimeError as error:
            raise UserError(f"{self.path}: not a sentencepiece model ({error})") from error
        self._ids = _Words(self._pieces.encode).__getitem__
        self._by_word = _splits_at_spaces(self._pieces)
        self.size = len(self._pieces) + 2
        """Vocabulary: the pieces, `<pad>` and `<mask>`."""
        self.mask = self.size - 1
        self.first_piece = 4
        """Ids from here to `mask` (not included) are ordinary pieces: what a random replacement is drawn from."""

    def encode(self, text: str, most: int) -> NDArray[np.int64]:
        """Return `<s>` pieces `</s>`, cut to `most` tokens in all: [L] with L <= most."""
        return self.encode_flat([text], most)[0]

    def encode_flat(self, texts: Sequence[str], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `encode`, end to end: (ids [W], the length of each text [N])."""
        if not texts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        parts = [self._bytes(text, most - 2) for text in texts]
        whole = b"".join([_BOS, (_EOS + _BOS).join(parts), _EOS])
        lengths = np.array([len(part) for part in parts]) // BYTES + 2
        return np.frombuffer(whole, np.intc).astype(np.int64), lengths

    def _bytes(self, text: str, most: int) -> bytes:
        """Return the first `most` ids of a text, without specials."""
        if not self._by_word:
            return self._ids(text)[: most * BYTES]
        words = text.split(" ", most)
        if len(words) > most:  # the last one is all the rest, which is not read
            words.pop()
            found = b"".join(map(self._ids, words))
            if len(found) >= most * BYTES:
                return found[: most * BYTES]
            words = text.split(" ")  # some words are nothing: two spaces, a letter that has no width
        return b"".join(map(self._ids, words))[: most * BYTES]

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


def open_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder: one a process, as long as its file stays the same. Raises UserError as `Tokenizer`."""
    path = folder.resolve() / SENTENCEPIECE_FILE
    status = path.stat() if path.is_file() else None
    return _opened(folder, (status.st_size, status.st_mtime_ns) if status else None)


@lru_cache(maxsize=4)
def _opened(folder: Path, version: tuple[int, int] | None) -> Tokenizer:
    return Tokenizer(folder)


_BOS, _EOS = (np.intc(token).tobytes() for token in (BOS, EOS))


def _splits_at_spaces(pieces: sentencepiece.SentencePieceProcessor) -> bool:
    """Tell whether words are tokenised alone as they are in a text; XLM-R's model does so, which sentencepiece calls default."""
    inside = any("▁" in pieces.id_to_piece(number)[1:] for number in range(len(pieces)))
    alone = pieces.encode("a")
    return not inside and pieces.encode("a a") == pieces.encode(" a  a ") == alone + alone
