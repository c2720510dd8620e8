"""What a micro-batch holds, in a form that two splits of a turn can be compared in."""

import numpy as np

from m3p.batch import Batch


def sequences(batch: Batch) -> list[list[int]]:
    """Return the words of every sequence of a batch, as they stand after masking and switching."""
    ends = np.cumsum(batch.lengths.numpy())
    owner = ends.searchsorted(batch.token_slots.numpy(), "right")
    return [batch.token_ids.numpy()[owner == number].tolist() for number in range(len(ends))]
