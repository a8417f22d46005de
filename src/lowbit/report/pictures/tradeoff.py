"""Quality against size: every model a point, better is up, smaller is left, the frontier drawn.

Sizes are drawn on a logarithmic axis where they differ much: half the size is the same step
everywhere. A broken model would press the others into one line, so a metric that is several times
worse than the best is drawn as a triangle at the lower edge, with its value beside its name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowbit.report.frontier import frontier
from lowbit.report.pictures import axis
from lowbit.report.pictures.axis import Scale
from lowbit.report.pictures.labels import Box, place_labels
from lowbit.report.pictures.sheet import (
    ACCENT,
    INK,
    PAPER,
    QUANTIZED,
    RULE,
    WIDTH,
    Sheet,
    text_width,
)
from lowbit.report.wording import number
from lowbit.visible import shortened

NARROWEST = 0.05  # of the metric's axis, as a share of its largest value
HEIGHT, SIZE = 300.0, 10.0
LEFT, TOP, BASE = 52.0, 32.0, HEIGHT - 42
CIRCLE = "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z"
DIAMOND = "M0 -5L5 0L0 5L-5 0z"
TRIANGLE = "M-4 -3L4 -3L0 4z"
# Where largest and smallest size differ by more than this factor, the axis is logarithmic.
LOGARITHMIC_ABOVE = 3
# A lower-is-better value beyond so many times the best is off the scale, if enough others are on.
OFF_ABOVE, ENOUGH = 3, 3


@dataclass(frozen=True)
class Point:
    """One model: its size, in the unit of the axis, its metric, and whether it is the reference."""

    name: str
    size: float
    value: float
    reference: bool


def on_frontier(points: Sequence[Point], better: str) -> list[int]:
    """Indices of the points on the frontier, by rising size."""
    sign = 1 if better == "higher" else -1
    return frontier([p.size for p in points], [sign * p.value for p in points])


def off_scale(values: Sequence[float], better: str) -> list[bool]:
    """Which of them are so much worse than the best that the axis ends before them."""
    best = min(values)
    if better == "higher" or best <= 0:
        return [False] * len(values)
    off = [value > OFF_ABOVE * best for value in values]
    return off if off.count(False) >= ENOUGH else [False] * len(values)


def tradeoff(name: str, metric: str, better: str, unit: str, points: Sequence[Point]) -> str:
    """The picture; all sizes and values are finite. `unit` is the label of the size axis."""
    made = Sheet(name, WIDTH, HEIGHT)
    off = off_scale([p.value for p in points], better)
    low, high = _limits([p.value for p, is_off in zip(points, off, strict=True) if not is_off])
    worst, best = (high, low) if better == "lower" else (low, high)
    up, across = Scale(worst, best, BASE, TOP), _size_scale([p.size for p in points])
    edge = BASE - 0.04 * (BASE - TOP)
    spots = [
        (across(p.size), edge if is_off else up(p.value))
        for p, is_off in zip(points, off, strict=True)
    ]
    axis.bottom(made, across, BASE, f"← smaller · {unit}", lambda value: number(value, 3))
    axis.left(made, Scale(low, high, up(low), up(high)), LEFT, lambda value: number(value, 4))
    made.text(6, 15, f"↑ better · {shortened(metric, 28)} ({better} is better)")

    on = on_frontier(points, better)
    line = _corners([spots[i] for i in on])
    made.line(line, ACCENT, 1.4)
    names = [
        shortened(p.name, 22) + (f": {number(p.value, 3)}" if is_off else "")
        for p, is_off in zip(points, off, strict=True)
    ]
    _label(made, names, spots, line)
    for i, (point, spot) in enumerate(zip(points, spots, strict=True)):
        face = PAPER if point.reference else QUANTIZED
        edge_colour = ACCENT if i in on else INK if point.reference else QUANTIZED
        shape = TRIANGLE if off[i] else DIAMOND if point.reference else CIRCLE
        made.mark(*spot, shape, face, edge_colour)
    listed = "; ".join(f"{p.name}: {number(p.size)}, {number(p.value)}" for p in points)
    best_names = ", ".join(points[i].name for i in on)
    return made.svg(f"{metric} against {unit}", f"{listed}. On the frontier: {best_names}.")


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """With room around them, and never so near to each other that nothing looks like much."""
    low, high = min(values), max(values)
    span = max(1.3 * (high - low), NARROWEST * max(abs(low), abs(high))) or 1.0
    return (low + high - span) / 2, (low + high + span) / 2


def _size_scale(sizes: Sequence[float]) -> Scale:
    small, large = min(sizes), max(sizes)
    if small > 0 and large / small > LOGARITHMIC_ABOVE:
        room = (large / small) ** 0.12
        return Scale(small / room, large * room, LEFT, WIDTH - 10, doublings=True)
    return Scale(0.0, 1.15 * large or 1.0, LEFT, WIDTH - 10)


Spot = tuple[float, float]


def _corners(spots: Sequence[Spot]) -> list[Spot]:
    """The frontier: from each point to the right, then up to the next."""
    turns = [(x, y) for (_, y), (x, _) in zip(spots, spots[1:], strict=False)]
    return [corner for pair in zip(spots, [*turns, spots[-1]], strict=True) for corner in pair]


def _label(made: Sheet, names: Sequence[str], spots: Sequence[Spot], line: Sequence[Spot]) -> None:
    sizes = [(text_width(words, SIZE) + 2, SIZE + 3) for words in names]
    area = Box(LEFT + 3, TOP - 6, WIDTH - 2, BASE - 2)
    boxes = place_labels(spots, sizes, area, _steps(line))
    for words, (x, y), box in zip(names, spots, boxes, strict=True):
        if box is None:
            continue
        near = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        if math.dist(near, (x, y)) > 14:
            made.line([(x, y), near], RULE, 0.8)
        made.text(box.centre[0], box.bottom - 3, words, "middle", SIZE)


def _steps(line: Sequence[Spot]) -> list[Box]:
    """The frontier as thin boxes."""
    return [
        Box(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1)
        for (x0, y0), (x1, y1) in zip(line, line[1:], strict=False)
    ]
