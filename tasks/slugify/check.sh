#!/bin/sh
# Says whether the repository in the current folder was fixed: exit 0 if it was. It looks at behaviour, not at the diff,
# and not only at what the visible tests ask.
set -eu
python3 -m unittest discover -q -s tests -t .
python3 - <<'PYTHON'
from textkit.slug import slugify

TITLE = "One two, three  FOUR five"
FULL = "one-two-three-four-five"
for limit in range(1, 40):
    slug = slugify(TITLE, max_length=limit)
    fitting = [FULL[:end] for end in range(1, len(FULL) + 1) if (FULL + "-")[end] == "-" and end <= limit]
    assert slug == (fitting[-1] if fitting else FULL[:limit]), (limit, slug)
assert slugify(TITLE) == FULL
assert slugify("a b", separator="--", max_length=4) == "a--b"
assert slugify("", max_length=3) == ""
PYTHON
