#!/bin/sh
set -eu
python3 -m unittest discover -q -s tests -t .
python3 - <<'PYTHON'
import random

from store.cache import Cache

source = random.Random(3)
for _ in range(300):
    now = 0
    size, ttl = source.randrange(1, 5), source.randrange(1, 12)
    cache, model = Cache(size, ttl, clock=lambda: now), []  # (key, value, set_at), the one used last at the end
    for step in range(60):
        now += source.randrange(3)
        key = source.randrange(6)
        alive = [entry for entry in model if now - entry[2] <= ttl]
        if source.random() < 0.5:
            found = [entry for entry in alive if entry[0] == key]
            assert cache.get(key, "none") == (found[0][1] if found else "none")
            model = [entry for entry in alive if entry[0] != key] + found
        else:
            rest = [entry for entry in alive if entry[0] != key]
            model = [*rest[max(0, len(rest) + 1 - size):], (key, step, now)]
            cache.set(key, step)
        assert len(cache) == len(model), (len(cache), model)
PYTHON
