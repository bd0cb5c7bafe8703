#!/bin/sh
set -eu
python3 -m unittest discover -q -s tests -t .
python3 - <<'PYTHON'
import random

from ranges.intervals import covers, merge

source = random.Random(7)
for _ in range(2000):
    given = [(a, a + source.randrange(4)) for a in (source.randrange(20) for _ in range(source.randrange(6)))]
    kept = list(given)
    merged = merge(given)
    held = {n for a, b in given for n in range(a, b + 1)}
    assert given == kept, "the input was changed"
    assert {n for a, b in merged for n in range(a, b + 1)} == held, given
    assert all(a[1] + 1 < b[0] for a, b in zip(merged, merged[1:])), (given, merged)
    assert all(covers(given, n) == (n in held) for n in range(30)), given
PYTHON
