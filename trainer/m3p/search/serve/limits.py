"""What a client may ask for: how often, how much, and how many clients at once."""

import time
from collections import OrderedDict
from threading import Lock

MAX_BODY = 16 * 2**20
"""Bytes of a picture that is sent as a query."""
MAX_QUERY = 1000
"""Characters of a query."""
MAX_TOP = 100
"""Pictures of one answer."""
MAX_DEPTH = 1000
"""Pictures that paging reaches."""
MAX_CONNECTIONS = 128
"""Connections that are open at once; more are closed with 503."""
TIMEOUT = 15.0
"""Seconds without a byte after which a connection is closed, and that a request's head, and a whole body, may take."""
DECODED_AT_ONCE = 2
"""Pictures of queries that are decoded at once: each may take some hundred megabytes for a moment."""
PIXELS_OF_A_QUERY = 2_000_000
"""Pixels of a picture that cost as much of the rate as a query of words."""
MAX_CLIENTS = 10_000
"""Addresses that are remembered: the one that was quiet for longest is forgotten."""


class Rate:
    """A bucket of tokens for each address: `per_second` flow in, up to twice that or to one; a request takes some out."""

    def __init__(self, per_second: float) -> None:
        self._per_second, self._lock = per_second, Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, address: str, cost: float = 1.0) -> bool:
        """Take `cost` out of the bucket of `address`; False, and nothing taken, where there is less in it.

        What costs more than the bucket holds takes all of it.
        """
        with self._lock:
            now, full = time.monotonic(), max(1.0, 2 * self._per_second)
            cost = min(cost, full)
            left, before = self._buckets.pop(address, (full, now))
            left = min(full, left + (now - before) * self._per_second)
            allowed = left >= cost
            self._buckets[address] = (left - cost if allowed else left, now)
            while len(self._buckets) > MAX_CLIENTS:
                self._buckets.popitem(last=False)
        return allowed
