"""Slugs: titles as parts of an address."""

import re
import unicodedata

WORD = re.compile(r"[a-z0-9]+")


def slugify(text, max_length=None, separator="-"):
    """Return the words of a text in lower case ASCII, joined by the separator.

    With max_length the slug is at most that long, cut between words where there is more than one.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    slug = separator.join(WORD.findall(plain.lower()))
    if max_length is None or len(slug) < max_length:
        return slug
    return slug[:max_length].rsplit(separator, 1)[0]
