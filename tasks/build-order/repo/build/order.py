"""In which order to build: every part after those it needs."""


class Cycle(Exception):
    """Parts that need each other. ``parts`` are those of one cycle, in order, the first repeated at the end."""

    def __init__(self, parts):
        super().__init__(" needs ".join(parts))
        self.parts = parts


def order(needs):
    """Return all parts, each after what it needs; among those that could come next, the smallest name comes first.

    ``needs`` maps a part to the parts it needs; one that is only needed is a part too. Raises Cycle.
    """
    done = []
    active = set()

    def visit(part):
        if part in active:
            raise Cycle(sorted(active))
        if part in done:
            return
        active.add(part)
        for needed in needs.get(part, ()):
            visit(needed)
        active.discard(part)
        done.append(part)

    for part in needs:
        visit(part)
    return done
