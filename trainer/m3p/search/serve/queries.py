"""Queries of many clients at once: one thread embeds and searches, texts that wait are embedded together.

Pictures are decoded in the threads of those who ask, a few at once: a large one delays no words. The queue is bounded. Who comes
when it is full is told so at once, and the others wait no longer for it.
"""

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from m3p.api import Floats
from m3p.batch import Picture
from m3p.errors import UserError
from m3p.search.parts import Numbers
from m3p.search.serve.limits import DECODED_AT_ONCE

MAX_WAITING = 64
"""Queries that wait at once."""
DECODING_PATIENCE = 20.0
"""Seconds that a picture waits to be decoded."""
BATCH = 32
"""Texts that are embedded together."""


class Embeds(Protocol):
    """What turns queries into vectors: `m3p.api.Model`."""

    def embed_texts(self, texts: list[str], /) -> Floats:
        """Return [N, D]."""

    def read_picture(self, content: bytes, /) -> Picture:
        """Decode a picture's file. Raises UserError for one that cannot be read."""

    def embed_read(self, pictures: list[Picture], /) -> Floats:
        """Return [N, D]."""


class Searches(Protocol):
    """What finds pictures by vectors: `SearchIndex`."""

    def nearest(self, queries: Floats, limit: int, /) -> tuple[Floats, Numbers]:
        """Return scores and numbers of the best pictures of each query, best first; number -1 where there are fewer."""


Answer = list[tuple[int, float]]
"""Numbers and scores of pictures, best first."""


class BusyError(Exception):
    """As many queries wait as may."""


@dataclass(frozen=True)
class _Query:
    content: str | Picture
    """A text, or a picture that has been decoded."""
    answer: "Future[Answer]" = field(default_factory=Future)


class Queries:
    """Answers queries by the `limit` best pictures, in a thread of its own, which `close` ends."""

    def __init__(self, model: Embeds, index: Searches, limit: int, waiting: int = MAX_WAITING) -> None:
        self._model, self._index, self._limit = model, index, limit
        self._queue: queue.Queue[_Query | None] = queue.Queue(waiting)
        self._decoding = threading.Semaphore(DECODED_AT_ONCE)
        self._thread = threading.Thread(target=self._work, name="queries", daemon=True)
        self._thread.start()

    def ask(self, content: str | bytes) -> "Future[Answer]":
        """Put a query, words or the bytes of a picture's file, into the queue; what is returned gives its answer.

        Raises BusyError, and UserError for a picture that cannot be read.
        """
        query = _Query(content if isinstance(content, str) else self._read(content))
        try:
            self._queue.put_nowait(query)
        except queue.Full:
            raise BusyError from None
        return query.answer

    def _read(self, content: bytes) -> Picture:
        if not self._decoding.acquire(timeout=DECODING_PATIENCE):
            raise BusyError
        try:
            return self._model.read_picture(content)
        finally:
            self._decoding.release()

    def close(self) -> None:
        """End the thread when it has answered what waits."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, last = [first], False
            while len(batch) < BATCH and not last:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                last = more is None
                batch += [more] if more else []
            self._answer(batch)
            if last:
                return

    def _answer(self, batch: list[_Query]) -> None:
        texts = [query for query in batch if isinstance(query.content, str)]
        if texts:
            self._answer_together(texts)
        for query in batch:  # one by one: a picture without a finite embedding fails no other
            if not isinstance(query.content, str):
                self._answer_together([query])

    def _answer_together(self, queries: list[_Query]) -> None:
        try:
            vectors = self._embed(queries)
            scores, numbers = self._index.nearest(vectors, self._limit)
        except Exception as error:  # whatever it is, it is those clients' answer, and the thread goes on
            for query in queries:
                query.answer.set_exception(error)
            return
        for query, mine, found in zip(queries, scores.tolist(), numbers.tolist(), strict=True):
            query.answer.set_result([(one, score) for one, score in zip(found, mine, strict=True) if one >= 0])

    def _embed(self, queries: list[_Query]) -> Floats:
        texts = [query.content for query in queries if isinstance(query.content, str)]
        if texts:
            return self._model.embed_texts(texts)
        vectors = self._model.embed_read([query.content for query in queries if not isinstance(query.content, str)])
        if not np.isfinite(vectors).all():
            raise UserError("the picture gives no finite embedding")
        return vectors
