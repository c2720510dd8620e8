"""Windows over long texts: a text of more tokens than fit shows another part of itself in each epoch.

A text of n tokens is covered by K = ceil(n / w) windows of w tokens, the first at its beginning, the last at its end, the
others evenly between. Epoch e takes window (e + h) mod K, where h is a hash of the sample's source, shard and number. So K
epochs in a row show every token, all ranks agree, and resuming needs nothing stored.
"""

import numpy as np
from numpy.typing import NDArray

from m3p.data.tokenizer import EOS
from m3p.keys import keys_of

Ids = NDArray[np.int64]

WHOLE = 2**30
"""Tokens: more than any text has, so that none is cut."""


def take_windows(ids: Ids, lengths: Ids, owners: NDArray[np.uint64], limit: int) -> tuple[Ids, Ids, list[int]]:
    """Cut the texts of more than `limit` tokens to the windows of their epochs; the others stay as they are.

    Args:
        ids: [W] tokens of all texts, whole and end to end, each with `<s>` and `</s>`.
        lengths: [N] tokens of each.
        owners: [N, 4] as in `Sample.owner`: source, epoch, shard, sample.

    Returns the tokens that are left, end to end, how many each text has now [N], and the numbers of the texts that were cut.
    """
    longer = (lengths > limit).nonzero()[0]
    if not len(longer):
        return ids, lengths, []
    skips = np.zeros(len(lengths), np.int64)
    skips[longer] = window_starts(lengths[longer] - 2, limit - 2, owners[longer])
    sizes = np.minimum(lengths, limit)
    ends = sizes.cumsum()
    kept = np.arange(ends[-1]) + np.repeat(lengths.cumsum() - lengths + skips - (ends - sizes), sizes)
    # The token before a window and the one behind it are replaced by `<s>` and `</s>`.
    kept[(ends - sizes)[longer]] = (lengths.cumsum() - lengths)[longer]
    windows = ids[kept]
    windows[(ends - 1)[longer]] = EOS
    return windows, sizes, [int(number) for number in longer]


def window_starts(sizes: Ids, window: int, owners: NDArray[np.uint64]) -> Ids:
    """Return the first token of the window that each text shows: [N].

    Args:
        sizes: [N] tokens of each text, more than `window`.
        window: tokens of a window.
        owners: [N, 4] as in `Sample.owner`: source, epoch, shard, sample.
    """
    windows = -(-sizes // window)
    phases = (keys_of(owners[:, [0, 2, 3]], "window") % windows.astype(np.uint64)).astype(np.int64)
    numbers = (owners[:, 1].astype(np.int64) + phases) % windows
    return numbers * (sizes - window) // (windows - 1)
