"""Closed intervals of whole numbers, as (first, last) pairs."""


def merge(intervals):
    """Return the intervals with those that overlap or touch (1-3 and 4-6) made one, sorted."""
    merged = []
    for first, last in intervals:
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    return merged


def covers(intervals, number):
    """Return whether any interval holds the number."""
    return any(first <= number <= last for first, last in merge(intervals))
