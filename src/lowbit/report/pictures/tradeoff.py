"""Quality against size: every model a point, better is up, smaller is left, the frontier drawn.

Sizes are drawn on a logarithmic axis where they differ much: half the size is the same step
everywhere. A broken model would press the others into one line, so a metric that is several times
worse than the best is drawn as a triangle at the lower edge, with its value beside its name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from lowbit.report.frontier import frontier
from lowbit.report.pictures.canvas import (
    ACCENT,
    INK,
    PAPER,
    QUANTIZED,
    RULE,
    WIDTH,
    axes,
    drawing,
    figure,
    text_width,
    to_svg,
)
from lowbit.report.pictures.labels import Box, place_labels
from lowbit.report.wording import number
from lowbit.visible import shortened

NARROWEST = 0.05  # of the metric's axis, as a share of its largest value
HEIGHT = 300
LEFT, TOP, BOTTOM, SIZE = 52, 32, 42, 10.0
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


@drawing
def tradeoff(name: str, metric: str, better: str, unit: str, points: Sequence[Point]) -> str:
    """The picture; all sizes and values are finite. `unit` is the label of the size axis."""
    made = figure(WIDTH, HEIGHT)
    plot = axes(made, LEFT, TOP, WIDTH - LEFT - 10, HEIGHT - TOP - BOTTOM)
    off = off_scale([p.value for p in points], better)
    low, high = _limits([p.value for p, is_off in zip(points, off, strict=True) if not is_off])
    plot.set_ylim((high, low) if better == "lower" else (low, high))
    edge = high - 0.04 * (high - low)
    at = [(p.size, edge if is_off else p.value) for p, is_off in zip(points, off, strict=True)]
    _size_axis(plot, [p.size for p in points])
    plot.yaxis.set_major_formatter(lambda value, _: number(value, 4))
    plot.tick_params(which="both", length=3)
    plot.set_xlabel(f"← smaller · {unit}", labelpad=3)
    made.text(
        6 / WIDTH, 1 - 15 / HEIGHT, f"↑ better · {shortened(metric, 28)} ({better} is better)"
    )

    on = on_frontier(points, better)
    line = [at[i] for i in on]
    plot.plot(*zip(*line, strict=True), color=ACCENT, lw=1.4, zorder=1, drawstyle="steps-post")
    for i, point in enumerate(points):
        face = PAPER if point.reference else QUANTIZED
        edge_colour = ACCENT if i in on else INK if point.reference else QUANTIZED
        marker = "v" if off[i] else "D" if point.reference else "o"
        plot.plot(*at[i], marker, ms=7, mfc=face, mec=edge_colour, mew=1.6, zorder=3)
    names = [
        shortened(p.name, 22) + (f": {number(p.value, 3)}" if is_off else "")
        for p, is_off in zip(points, off, strict=True)
    ]
    _label(plot, names, at, line)
    listed = "; ".join(f"{p.name}: {number(p.size)}, {number(p.value)}" for p in points)
    best = ", ".join(points[i].name for i in on)
    return to_svg(made, name, f"{metric} against {unit}", f"{listed}. On the frontier: {best}.")


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """With room around them, and never so near to each other that nothing looks like much."""
    low, high = min(values), max(values)
    span = max(1.3 * (high - low), NARROWEST * max(abs(low), abs(high))) or 1.0
    return (low + high - span) / 2, (low + high + span) / 2


def _size_axis(plot: Axes, sizes: Sequence[float]) -> None:
    small, large = min(sizes), max(sizes)
    if small > 0 and large / small > LOGARITHMIC_ABOVE:
        plot.set_xscale("log", base=2)
        room = (large / small) ** 0.12
        plot.set_xlim(small / room, large * room)
        plot.xaxis.set_major_locator(LogLocator(base=2))
        plot.xaxis.set_minor_locator(NullLocator())
    else:
        plot.set_xlim(0, 1.15 * large or 1.0)
    plot.xaxis.set_major_formatter(lambda value, _: number(value, 3))


Spot = tuple[float, float]


def _label(plot: Axes, names: Sequence[str], at: Sequence[Spot], line: Sequence[Spot]) -> None:
    sizes = [(text_width(words, SIZE) + 2, SIZE + 3) for words in names]
    dots = [_pixels(plot, spot) for spot in at]
    steps = _steps([_pixels(plot, spot) for spot in line])
    area = Box(LEFT + 3, BOTTOM + 2, WIDTH - 2, HEIGHT - TOP + 6)
    boxes = place_labels(dots, sizes, area, steps)
    for words, (x, y), box in zip(names, dots, boxes, strict=True):
        if box is None:
            continue
        near = min(max(x, box.left), box.right), min(max(y, box.bottom), box.top)
        if math.dist(near, (x, y)) > 14:
            plot.plot([x, near[0]], [y, near[1]], transform=None, color=RULE, lw=0.8, zorder=2)
        plot.text(
            box.centre[0], box.bottom + 3, words, transform=None, ha="center", size=SIZE, zorder=4
        )


def _pixels(plot: Axes, spot: Spot) -> Spot:
    x, y = plot.transData.transform(spot)
    return float(x), float(y)


def _steps(line: Sequence[Spot]) -> list[Box]:
    """The frontier as thin boxes: to the right, then up."""
    boxes = []
    for (x0, y0), (x1, y1) in zip(line, line[1:], strict=False):
        boxes.append(Box(x0, y0 - 1, x1, y0 + 1))
        boxes.append(Box(x1 - 1, min(y0, y1), x1 + 1, max(y0, y1)))
    return boxes
