#!/bin/sh
set -eu
python3 -m unittest discover -q -s tests -t .
python3 - <<'PYTHON'
import random
import time

from build.order import Cycle, order

assert order({"b": [], "a": [], "c": ["a"]}) == ["a", "b", "c"]
assert order({"z": ["a"], "m": []}) == ["a", "m", "z"]
assert order({"x": ["y", "y"]}) == ["y", "x"]
source = random.Random(11)
for _ in range(500):
    names = [f"p{n}" for n in range(source.randrange(1, 8))]
    needs = {name: [other for other in names if source.random() < 0.2] for name in names}
    kept = {name: list(needed) for name, needed in needs.items()}
    left, expected = {name: set(needed) for name, needed in needs.items()}, []
    while ready := sorted(name for name, needed in left.items() if not needed):
        expected.append(ready[0])
        del left[ready[0]]
        for needed in left.values():
            needed.discard(ready[0])
    try:
        assert order(needs) == expected and not left, needs
    except Cycle as cycle:
        assert left, needs
        parts = cycle.parts
        assert parts[0] == parts[-1] and len(parts) > 1 and len(set(parts)) == len(parts) - 1, parts
        assert all(after in needs[part] for part, after in zip(parts, parts[1:])), (needs, parts)
    assert needs == kept, "the input was changed"
started = time.monotonic()
chain = {f"p{n:05}": [f"p{n + 1:05}"] for n in range(50_000)}
assert order(chain)[0] == "p50000"
assert time.monotonic() - started < 20
PYTHON
