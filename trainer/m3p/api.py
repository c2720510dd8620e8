"""The Python face of a trained run: texts and pictures to vectors, and pairs to scores."""

from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3p.batch import Picture
from m3p.errors import BadSample, UserError
from m3p.retrieval.scoring import scorer_of
from m3p.runs import Run, open_run
from m3p.unicode_text import HALF, is_unicode
from m3p.visual.decode import MAX_PIXELS, as_decoded
from m3p.visual.npz import LARGEST_NPZ

T = TypeVar("T")
Floats = NDArray[np.float32]
PictureLike = str | Path | bytes | Image.Image
"""A file, the bytes of one, or an opened picture."""
MAX_BYTES = 4 * MAX_PIXELS
"""Bytes of a picture's file, at most."""
SHOWN = 100
"""Characters of a text that a message shows."""


class Model:
    """A trained network, opened with `m3p.load`. Results are in the order of the arguments.

    Args:
        run: an opened run.
        batch_size: texts or pictures that are forwarded at once; no more pictures than that are decoded at once either.
    """

    def __init__(self, run: Run, batch_size: int = 64) -> None:
        self.run = run
        self.batch_size = batch_size
        self._scorer = scorer_of(run, batch_size)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Return [N, D] of unit length, D being the width of the common space. Raises UserError without a dual encoder."""
        self._check("embeds", "compare embeddings")
        return self._in_batches(_texts(texts), self._scorer.embed_texts, width=self._width())

    def embed_pictures(self, pictures: Sequence[PictureLike]) -> Floats:
        """Return [N, D] of unit length. Raises UserError for a picture that cannot be read, naming it."""
        self._check("embeds", "compare embeddings")
        return self._in_batches(
            _pictures(pictures), lambda some: self._scorer.embed_pictures(self._load(some)), width=self._width()
        )

    def read_picture(self, picture: PictureLike) -> Picture:
        """Return a picture decoded and ready for `embed_read`; any number of threads may call it. Raises UserError."""
        return self._load([picture])[0]

    def embed_read(self, pictures: Sequence[Picture]) -> Floats:
        """Return [N, D] of unit length, as `embed_pictures` does, of pictures that `read_picture` has decoded."""
        self._check("embeds", "compare embeddings")
        return self._in_batches(pictures, self._scorer.embed_pictures, width=self._width())

    def match(self, texts: Sequence[str], pictures: Sequence[PictureLike]) -> Floats:
        """Return the cross-encoder's logit [N] of each text with the picture in the same place; above 0 they belong together.

        Raises UserError without a cross-encoder, or where there are not as many texts as pictures.
        """
        self._check("scores_pairs", "match pairs")
        pairs = list(zip(_texts(texts), _pictures(pictures), strict=False))
        if len(texts) != len(pictures):
            raise UserError(f"match: {len(texts)} texts and {len(pictures)} pictures; give one picture for each text")

        def score(some: Sequence[tuple[str, PictureLike]]) -> Floats:
            places = np.arange(len(some)).repeat(2).reshape(-1, 2)
            return self._scorer.match([text for text, _ in some], self._load([one for _, one in some]), places)

        return self._in_batches(pairs, score)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids that the network is given for each text, with `<s>` and `</s>`, cut to the length of training."""
        return [self.run.tokenizer.encode(text, self.run.max_tokens).tolist() for text in _texts(texts)]

    def _in_batches(
        self, items: Sequence[T], compute: Callable[[Sequence[T]], Floats], width: int | None = None
    ) -> Floats:
        firsts = range(0, len(items), self.batch_size)
        parts = [compute(items[first : first + self.batch_size]) for first in firsts]
        return np.concatenate(parts) if parts else np.zeros((0, width) if width else 0, np.float32)

    def _width(self) -> int:
        return self.run.recipe.model.projection or self.run.model.text.words.embedding_dim

    def _check(self, ability: str, what: str) -> None:
        if not any(getattr(task, ability) for task in self.run.recipe.tasks):
            names = ", ".join(task.name for task in self.run.recipe.tasks)
            raise UserError(f"{self.run.folder}: it was trained on {names}, none of which learns to {what}")

    def _load(self, pictures: Sequence[PictureLike]) -> list[Picture]:
        return list(self._read(pictures))

    def _read(self, pictures: Sequence[PictureLike]) -> Iterator[Picture]:
        visual = self.run.recipe.visual
        assert visual is not None, "a run that embeds or matches pictures has a visual section"
        for number, picture in enumerate(pictures):
            name = str(picture) if isinstance(picture, str | Path) else f"picture {number} of the batch"
            content = _bytes(picture)
            try:
                yield visual.load(visual.files_of(content), None)
            except BadSample as reason:
                raise UserError(f"{name}: {reason}") from reason


def load(path: str | Path, batch_size: int = 64) -> Model:
    """Open a run folder, one of its checkpoints, or a folder that `m3p export` wrote. Raises UserError."""
    return Model(open_run(Path(path)), batch_size)


def _texts(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UserError("texts: give a list of str")
    if (wrong := next((number for number, text in enumerate(texts) if not is_unicode(text)), None)) is not None:
        raise UserError(f"texts: number {wrong}, {texts[wrong][:SHOWN]!r}, holds {HALF}; give Unicode text")
    return texts


def _pictures(pictures: Sequence[PictureLike]) -> Sequence[PictureLike]:
    if isinstance(pictures, PictureLike):
        raise UserError("pictures: give a list of paths, bytes or PIL images")
    return pictures


def _bytes(picture: PictureLike) -> bytes:
    """Return the bytes of a picture's file. Raises UserError for what is no regular file, or too large."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        stored = BytesIO()
        as_decoded(picture).save(stored, "PNG", compress_level=1)
        return stored.getvalue()
    if not isinstance(picture, str | Path):
        raise UserError(f"pictures: {type(picture).__name__} is no path, bytes or PIL image")
    path = Path(picture)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    limit = max(MAX_BYTES, LARGEST_NPZ)
    if path.stat().st_size > limit:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes; a picture has at most {limit:,}")
    return path.read_bytes()
