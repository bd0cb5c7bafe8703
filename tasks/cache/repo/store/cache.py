"""A cache of bounded size whose entries also grow old."""

import time
from collections import OrderedDict


class Cache:
    """Keeps the ``size`` entries used last, each for at most ``ttl_s`` seconds after it was set."""

    def __init__(self, size, ttl_s, clock=time.monotonic):
        self._size = size
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries = OrderedDict()

    def get(self, key, default=None):
        """Return the value, or the default where there is none or it is too old. A hit counts as a use."""
        if key not in self._entries:
            return default
        value, set_at = self._entries[key]
        if self._clock() - set_at > self._ttl_s:
            return default
        self._entries[key] = (value, self._clock())
        return value

    def set(self, key, value):
        """Keep a value; where the cache is full, the entry used longest ago goes."""
        if len(self._entries) >= self._size:
            self._entries.popitem(last=False)
        self._entries[key] = (value, self._clock())

    def __len__(self):
        """Return how many entries can still be got."""
        return len(self._entries)
