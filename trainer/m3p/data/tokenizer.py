"""Text -> XLM-R's token ids, framed and cut, with a memory of words.

Words are cut one by one, and the pieces of words met before are remembered, as Hugging Face's `tokenizers` does: no piece of
such a model holds a space inside, so that the best pieces of a text are those of its words. (sentencepiece, given the whole
text, adds up scores in float32; where two ways to cut a word score alike, it decides by the words before.) How other
libraries cut the same texts: data/tokenizer_json.py.
"""

from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3p.data.pieces import BOS, EOS, PAD, UNK, read_pieces_of
from m3p.vocabulary import SENTENCEPIECE_FILE, vocabulary_file

__all__ = ["BOS", "EOS", "PAD", "SENTENCEPIECE_FILE", "UNK", "Tokenizer", "open_tokenizer"]

MAX_WORDS = 100_000
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
        found = array("i", self._encode(word)).tobytes()  # no numpy: a word has three ids
        if len(self) < MAX_WORDS and len(word) <= LONGEST_WORD:
            self[word] = found
        return found


class Tokenizer:
    """Text -> ids. `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, then ordinary pieces, then `<mask>`. Raises UserError."""

    def __init__(self, folder: Path) -> None:
        self.path = vocabulary_file(folder)
        """The file that holds the vocabulary: a sentencepiece model or a tokenizer.json."""
        self._load()

    def _load(self) -> None:
        self.pieces = read_pieces_of(self.path)
        """The vocabulary, with what cuts a word into its pieces."""
        self._ids = _Words(self.pieces.encode).__getitem__
        self.size = self.pieces.size
        """Vocabulary: the pieces and the special tokens."""
        self.mask = self.pieces.mask
        self.first_piece = 4
        """Ids from here to `mask` (not included) are ordinary pieces: what a random replacement is drawn from."""

    @property
    def by_word(self) -> bool:
        """Whether a text's pieces are those of its words, cut alone and remembered."""
        return self.pieces.by_word

    def encode(self, text: str, limit: int) -> NDArray[np.int64]:
        """Return `<s>` pieces `</s>`, cut to `limit` tokens in all: [L] with L <= limit."""
        return self.encode_flat([text], limit)[0]

    def encode_flat(self, texts: Sequence[str], limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `encode`, end to end: (ids [W], the length of each text [N])."""
        if not texts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        parts = [self._bytes(text, limit - 2) for text in texts]
        whole = b"".join([_BOS, (_EOS + _BOS).join(parts), _EOS])
        lengths = np.array([len(part) for part in parts]) // BYTES + 2
        return np.frombuffer(whole, np.intc).astype(np.int64), lengths

    def _bytes(self, text: str, limit: int) -> bytes:
        """Return the first `limit` ids of a text, without specials."""
        if not self.pieces.by_word or "▁" in text:  # a written ▁ may count as a space
            return self._ids(text)[: limit * BYTES]
        words = text.split(" ", limit)
        if len(words) > limit:  # the last one is all the rest, which is not read
            words.pop()
            found = b"".join(map(self._ids, words))
            if len(found) >= limit * BYTES:
                return found[: limit * BYTES]
            words = text.split(" ")  # some words are nothing: two spaces, a letter that has no width
        return b"".join(map(self._ids, words))[: limit * BYTES]

    @property
    def unknown(self) -> int:
        """The id of what the vocabulary does not know."""
        return UNK

    def piece(self, token: int) -> str:
        """Return one token as it is written in the vocabulary: `<mask>`, or `▁dog` where a word begins."""
        return self.pieces.piece(token)

    def decode(self, ids: NDArray[np.int64]) -> str:
        """Return the text of `ids`, specials left out and `<mask>` shown as such."""
        words = ["▁<mask>" if token == self.mask else self.piece(int(token)) for token in ids if token > UNK]
        return "".join(words).replace("▁", " ").strip()

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path = path
        self._load()


def open_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder: one a process, as long as its file stays the same. Raises UserError as `Tokenizer`."""
    status = vocabulary_file(folder.resolve()).stat()
    return _opened(folder, (status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=4)
def _opened(folder: Path, version: tuple[int, int]) -> Tokenizer:
    return Tokenizer(folder)


_BOS, _EOS = (np.intc(token).tobytes() for token in (BOS, EOS))
