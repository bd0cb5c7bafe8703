"""The pool of cache pages and the prefix cache: which pages are in use, can be found by their tokens, or can be taken.

A page is in exactly one of three states: *free* (its content is worthless), *held* (by one or more sequences) or *kept*
(no sequence holds it, but its tokens are known and a later prompt may begin with them). Kept pages are evicted in the order in
which they were released, oldest first.

Full pages are found by a trie: a page is looked up by the key of the page before it and its own tokens. Keys are numbers that are
never reused, and tokens are compared by value, so two different prefixes cannot be confused as they could with hashes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

ROOT = 0  # the key of the empty prefix


@dataclass(slots=True)
class _Page:
    holders: int = 0
    key: int | None = None  # its key in the trie, once it is full and published
    path: tuple[int, tuple[int, ...]] | None = None  # (key of the page before, its tokens): its entry in the trie


class PagePool:
    """Pages of one size. Every page taken must be released; ``check`` verifies the invariants."""

    def __init__(self, pages: int, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self._pages = [_Page() for _ in range(pages)]
        self._free = list(range(pages - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._trie: dict[tuple[int, tuple[int, ...]], int] = {}
        self._next_key = ROOT + 1

    @property
    def total(self) -> int:
        """The number of pages."""
        return len(self._pages)

    @property
    def available(self) -> int:
        """The number of pages that can be taken now: free and kept ones."""
        return len(self._free) + len(self._kept)

    def take(self) -> int | None:
        """Take a page and return it; None if every page is held."""
        if self._free:
            page = self._free.pop()
        elif self._kept:
            page, _ = self._kept.popitem(last=False)
            self._forget(page)
        else:
            return None
        self._pages[page].holders = 1
        return page

    def release(self, pages: Sequence[int]) -> None:
        """Release a sequence's pages. Its last pages are evicted first, so prefixes stay longer than tails."""
        for page in reversed(pages):
            entry = self._pages[page]
            if entry.holders < 1:
                raise ValueError(f"page {page} is released but not held")
            entry.holders -= 1
            if entry.holders == 0:
                if entry.key is None:
                    self._free.append(page)
                else:
                    self._kept[page] = None

    def match(self, tokens: Sequence[int]) -> tuple[list[int], int]:
        """Take the longest known prefix of ``tokens`` in whole pages; return its pages and its key.

        The last token is never part of it, because a step must compute at least one token to have logits to sample from.
        """
        found: list[int] = []
        key = ROOT
        size = self.page_tokens
        for start in range(0, len(tokens) - size, size):
            page = self._trie.get((key, tuple(tokens[start : start + size])))
            if page is None:
                break
            entry = self._pages[page]
            if entry.holders == 0:
                del self._kept[page]
            entry.holders += 1
            found.append(page)
            key = self._key(page)
        return found, key

    def publish(self, page: int, parent: int, tokens: Sequence[int]) -> int:
        """Add a full held page to the trie after the prefix ``parent`` (ROOT: it is the first page); return the new prefix's key.

        If another page with the same tokens is in the trie already, that one stays, and its key is returned.
        """
        if len(tokens) != self.page_tokens:
            raise ValueError(f"only a full page can be published: {len(tokens)} of {self.page_tokens} tokens")
        path = (parent, tuple(tokens))
        known = self._trie.get(path)
        if known is not None:
            return self._key(known)
        entry = self._pages[page]
        if entry.key is not None:
            raise ValueError(f"page {page} was published before, with other tokens")
        entry.key, entry.path = self._next_key, path
        self._next_key += 1
        self._trie[path] = page
        return entry.key

    def clear(self) -> None:
        """Evict every kept page; held pages stay held and in the trie."""
        while self._kept:
            page, _ = self._kept.popitem()
            self._forget(page)
            self._free.append(page)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken. For tests and debugging."""
        free, kept = set(self._free), set(self._kept)
        held = {index for index, entry in enumerate(self._pages) if entry.holders}
        assert len(free) == len(self._free), "a page is free twice"
        assert len(free) + len(kept) + len(held) == self.total, "a page is in two places or nowhere"
        assert free | kept | held == set(range(self.total)), "a page is nowhere"
        assert all(self._pages[page].key is None for page in free), "a free page can be found"
        assert all(self._pages[page].key is not None for page in kept), "a kept page can't be found"
        listed = {entry.path: index for index, entry in enumerate(self._pages) if entry.path is not None}
        assert listed == self._trie, "the trie lists other pages than those with keys"

    def _key(self, page: int) -> int:
        key = self._pages[page].key
        assert key is not None, "a page in the trie has a key"
        return key

    def _forget(self, page: int) -> None:
        entry = self._pages[page]
        if entry.path is not None:
            del self._trie[entry.path]
        entry.key = entry.path = None
