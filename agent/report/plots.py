"""Plots as inline SVG: widths in percent and heights in pixels, so that text keeps its size on every screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from agent.report.html import Markup, element

HEIGHT = 150
TOP, BOTTOM = 16, 20  # room for counts above, and for the axis below
ROW = 26
LABEL_PERCENT, VALUE_PERCENT = 26.0, 18.0
GUTTER_PERCENT = 12.0  # for the numbers of a vertical axis
MOST_BINS = 12


@dataclass(frozen=True, slots=True)
class Bar:
    """One horizontal bar: a count and its label. ``kind`` is the CSS class that colours it."""

    label: str
    value: int
    of: int
    kind: str = "plain"


@dataclass(frozen=True, slots=True)
class Stack:
    """One column: parts from the bottom up, each a CSS class and a value; ``label`` is its tooltip."""

    label: str
    parts: tuple[tuple[str, float], ...]


def bars(title: str, rows: Sequence[Bar]) -> Markup:
    """Return horizontal bars with their values and shares."""
    most = max((row.value for row in rows), default=0) or 1
    shapes = []
    for number, row in enumerate(rows):
        y, width = number * ROW, (100 - LABEL_PERCENT - VALUE_PERCENT) * row.value / most
        shapes += [
            element("text", row.label, x=0, y=y + 17),
            element(
                "rect", x=f"{LABEL_PERCENT}%", y=y + 4, width=f"{width:.2f}%", height=ROW - 8, class_=f"bar {row.kind}"
            ),
            element(
                "text",
                f"{row.value:,} ({row.value / max(row.of, 1):.0%})",
                x=f"{LABEL_PERCENT + width:.2f}%",
                dx=5,
                y=y + 17,
            ),
        ]
    said = ", ".join(f"{row.label} {row.value}" for row in rows)
    return _figure(title, said, len(rows) * ROW + 2, shapes)


def histogram(title: str, values: Sequence[float], told: Callable[[float], str]) -> Markup:
    """Return a histogram. ``told`` formats a value on the axis."""
    edges = bin_edges(values)
    counts = [sum(low <= value < high for value in values) for low, high in pairwise(edges)]
    most, width = max(counts, default=0) or 1, 100 / max(len(counts), 1)
    room, floor = HEIGHT - TOP - BOTTOM, HEIGHT - BOTTOM
    shapes = []
    for number, count in enumerate(counts):
        height = room * count / most
        tip = element("title", f"{told(edges[number])} to {told(edges[number + 1])}: {count}")
        x = number * width
        shapes.append(
            element(
                "rect",
                tip,
                x=f"{x + 0.4:.2f}%",
                y=f"{floor - height:.1f}",
                width=f"{width - 0.8:.2f}%",
                height=f"{height:.1f}",
                class_="bar plain",
            )
        )
        if count:
            shapes.append(
                element(
                    "text", f"{count:,}", x=f"{x + width / 2:.2f}%", y=f"{floor - height - 4:.1f}", text_anchor="middle"
                )
            )
    every = math.ceil(len(counts) / 4) if counts else 1
    marks = [(number * width, told(edges[number])) for number in range(0, len(edges), every)]
    said = ", ".join(
        f"{told(low)} to {told(high)}: {count}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
        if count
    )
    return _figure(title, said, HEIGHT, [*shapes, _axis(floor), *_marks(marks)])


def columns(
    title: str, stacks: Sequence[Stack], told: Callable[[float], str], legend: Sequence[tuple[str, str]]
) -> Markup:
    """Return stacked columns side by side, numbered from 1; ``legend`` names the classes."""
    highest = max((sum(value for _, value in stack.parts) for stack in stacks), default=0.0)
    most, width = nice_above(highest), (100 - GUTTER_PERCENT) / max(len(stacks), 1)
    room, floor = HEIGHT - TOP - BOTTOM, HEIGHT - BOTTOM
    shapes = []
    for part in (0.5, 1.0):
        y = f"{floor - room * part:.1f}"
        shapes += [
            element("line", x1=f"{GUTTER_PERCENT}%", x2="100%", y1=y, y2=y, class_="grid"),
            element("text", told(most * part), x=0, y=y, dy=4),
        ]
    for number, stack in enumerate(stacks):
        x, below, parts = f"{GUTTER_PERCENT + number * width:.2f}%", 0.0, []
        for kind, value in stack.parts:
            low, high = floor - room * below / most, floor - room * (below + value) / most
            below += value
            if value:
                size = {"width": f"{width * 0.86:.2f}%", "height": f"{low - high:.1f}"}
                parts.append(element("rect", x=x, y=f"{high:.1f}", **size, class_=f"bar {kind}"))
        shapes.append(element("g", element("title", stack.label), *parts))
    every = nice_step(len(stacks) / 6)
    marks = [(GUTTER_PERCENT + (number - 0.57) * width, str(number)) for number in range(every, len(stacks) + 1, every)]
    named = element("p", *(element("span", name, class_=f"key {kind}") for kind, name in legend), class_="legend")
    said = f"{len(stacks)} columns, the highest {told(highest)}"
    return _figure(title, said, HEIGHT, [*shapes, _axis(floor), *_marks(marks)], named)


def _figure(title: str, said: str, height: int, shapes: Sequence[Markup], legend: Markup | None = None) -> Markup:
    drawn = element("svg", *shapes, role="img", aria_label=f"{title}: {said}", width="100%", height=height)
    return element("figure", element("figcaption", title), legend, drawn)


def _axis(floor: int) -> Markup:
    return element("line", x1="0", x2="100%", y1=floor, y2=floor, class_="axis")


def _marks(marks: Sequence[tuple[float, str]]) -> list[Markup]:
    """Return the labels below an axis; the outermost are kept inside of the picture."""
    return [
        element(
            "text",
            word,
            x=f"{x:.2f}%",
            y=HEIGHT - 5,
            text_anchor="start" if x < 2 else "end" if x > 98 else "middle",
        )
        for x, word in marks
    ]


def bin_edges(values: Sequence[float]) -> list[float]:
    """Return the edges of about MOST_BINS equal bins that contain every value; of 1-2-5 bins if the values span decades."""
    if not values:
        return []
    most = max(values)
    middle = sorted(values)[len(values) // 2]
    if most < 1e-9:
        return [0.0, 1.0]
    if middle > 0 and most / middle > 12:
        edges = [0.0]
        at = 10 ** math.floor(math.log10(max(min(values), most / 10_000, 1e-9)))
        while edges[-1] <= most:
            edges += [at, at * 2, at * 5]
            at *= 10
        last = next(number for number, edge in enumerate(edges) if edge > most)
        first = max((number for number, edge in enumerate(edges) if edge <= min(values)), default=0)
        return edges[first : last + 1]
    step = _nice(most / MOST_BINS * 1.0001)
    if all(value == int(value) for value in values):
        step = max(1.0, step)
    start = math.floor(min(values) / step)
    return [number * step for number in range(start, math.floor(most / step) + 2)]


def nice_above(value: float) -> float:
    """Return the smallest number of the form 1, 2 or 5 times a power of ten that is not below ``value``; 1 for 0."""
    return _nice(value) if value > 0 else 1.0


def nice_step(value: float) -> int:
    """Do as ``nice_above`` does, in integers."""
    return max(1, round(_nice(value))) if value > 0 else 1


def _nice(value: float) -> float:
    power: float = 10 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value * 0.999999)
