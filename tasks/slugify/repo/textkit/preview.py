"""Previews: the beginning of a text, for a list of articles."""

ELLIPSIS = "…"


def preview(text, max_length=80):
    """Return the text on one line, cut between words, with an ellipsis where something is missing."""
    line = " ".join(text.split())
    if len(line) <= max_length:
        return line
    kept = line[: max_length - len(ELLIPSIS)].rsplit(" ", 1)[0]
    return kept + ELLIPSIS
