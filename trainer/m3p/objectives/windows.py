"""Windows over long texts: a text of more tokens than fit shows another part of itself in each epoch.

A text of n tokens is covered by K = ceil(n / w) windows of w tokens, the first at its beginning, the last at its end, the
others evenly between. Epoch e takes window (e + h) mod K, where h is a hash of the sample's source, shard and number. So K
epochs in a row show every token, all ranks agree, and resuming needs nothing stored.
"""

import numpy as np
from numpy.typing import NDArray

from m3p.data.samples import Samples
from m3p.data.tokenizer import Tokenizer
from m3p.keys import keys_of

Ids = NDArray[np.int64]

WHOLE = 2**30
"""Tokens: more than any text has."""


def take_windows(ids: Ids, lengths: Ids, samples: Samples, most: int, tokenizer: Tokenizer) -> list[int]:
    """Put the window of its epoch in the place of each passage that was cut; return the numbers of those passages.

    Args:
        ids: [W] tokens of the passages `samples` [N], end to end, each with `<s>` and `</s>` and cut to `most` tokens; changed
            in place. Passages that fit stay as they are.
        lengths: [N] tokens of each.
    """
    full = (lengths == most).nonzero()[0]
    if not len(full):
        return []
    whole, sizes = tokenizer.encode_flat([samples.records[number] for number in full.tolist()], WHOLE)
    starts, firsts = lengths.cumsum() - lengths, sizes.cumsum() - sizes
    longer = sizes > most
    full, sizes, firsts = full[longer], sizes[longer], firsts[longer]
    skips = window_starts(sizes - 2, most - 2, samples.owners[full])
    for place, first in zip((starts[full] + 1).tolist(), (firsts + 1 + skips).tolist(), strict=True):
        ids[place : place + most - 2] = whole[first : first + most - 2]
    return [int(number) for number in full]


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
