"""Threads that decode the pictures of a micro-batch: decoders release the GIL, and what they give does not depend on them."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

First = TypeVar("First")
Second = TypeVar("Second")
Result = TypeVar("Result")

_number = 1


def set_threads(number: int) -> None:
    """Decode with `number` threads in this process from now on."""
    global _number
    _number = number


def each(
    function: Callable[[First, Second], Result], first: Iterable[First], second: Iterable[Second]
) -> Iterator[Result]:
    """Return the results of `function` in the order of its arguments, as `map` does."""
    if _number == 1:
        return map(function, first, second)
    return _pool(os.getpid(), _number).map(function, first, second)


@cache
def _pool(process: int, number: int) -> ThreadPoolExecutor:
    """Return the threads of this process; a forked worker does not have those of its parent."""
    return ThreadPoolExecutor(number, "decode")
