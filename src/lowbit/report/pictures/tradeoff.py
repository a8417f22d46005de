"""Quality against size: every model a point, better is up, smaller is left, the frontier drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

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
from lowbit.report.visible import shortened
from lowbit.report.wording import number

HEIGHT = 300
LEFT, TOP, BOTTOM, SIZE = 54, 30, 42, 10.0
# Beyond this ratio of worst to best the differences among the good would not be seen.
LOGARITHMIC_ABOVE = 6


@dataclass(frozen=True)
class Point:
    """One model: its size, in the unit of the axis, its metric, and whether it is the reference."""

    name: str
    size: float
    value: float
    reference: bool


def on_frontier(points: Sequence[Point], better: str) -> list[int]:
    sign = 1 if better == "higher" else -1
    return frontier([p.size for p in points], [sign * p.value for p in points])


@drawing
def tradeoff(name: str, metric: str, better: str, unit: str, points: Sequence[Point]) -> str:
    """The picture; all sizes and values are finite. `unit` is the label of the size axis."""
    made = figure(WIDTH, HEIGHT)
    plot = axes(made, LEFT, TOP, WIDTH - LEFT - 10, HEIGHT - TOP - BOTTOM)
    x, y = np.array([p.size for p in points]), np.array([p.value for p in points])
    logarithmic = bool((y > 0).all() and y.max() / y.min() > LOGARITHMIC_ABOVE)
    plot.set_yscale("log" if logarithmic else "linear")
    plot.set_xlim(0, 1.12 * x.max())
    plot.set_ylim(*_limits(y, logarithmic))
    if better == "lower":
        plot.invert_yaxis()
    plot.yaxis.set_major_formatter(lambda value, _: number(value, 3))
    plot.yaxis.set_minor_formatter(lambda value, _: "")
    plot.locator_params(axis="x", nbins=6)
    plot.tick_params(which="both", length=3)
    plot.set_xlabel(unit + "   ← smaller is better", labelpad=3)
    scale = ", logarithmic" if logarithmic else ""
    words = f"↑ better   {shortened(metric, 26)} ({better} is better{scale})"
    made.text(6 / WIDTH, 1 - 15 / HEIGHT, words)
    on = on_frontier(points, better)
    plot.plot(x[on], y[on], color=ACCENT, lw=1.5, zorder=1, drawstyle="steps-post")
    for i, point in enumerate(points):
        face = PAPER if point.reference else QUANTIZED
        edge = ACCENT if i in on else INK if point.reference else QUANTIZED
        marker = "D" if point.reference else "o"
        plot.plot(x[i], y[i], marker, ms=7, mfc=face, mec=edge, mew=1.6, zorder=3, clip_on=False)
    _label(plot, points)
    best = ", ".join(points[i].name for i in on)
    listed = "; ".join(f"{p.name}: {number(p.size)}, {number(p.value)}" for p in points)
    return to_svg(made, name, f"{metric} against {unit}", f"{listed}. On the frontier: {best}.")


def _limits(values: np.ndarray, logarithmic: bool) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        room = (high / low) ** 0.12
        return low / room, high * room
    room = 0.14 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _label(plot: Axes, points: Sequence[Point]) -> None:
    names = [shortened(point.name, 22) for point in points]
    sizes = [(text_width(words, SIZE) + 2, SIZE + 3) for words in names]
    at = [tuple(plot.transData.transform((p.size, p.value))) for p in points]
    area = Box(LEFT + 3, BOTTOM + 2, WIDTH - 2, HEIGHT - TOP + 4)
    for words, (x, y), box in zip(names, at, place_labels(at, sizes, area), strict=True):
        if box is None:
            continue
        cx, cy = box.centre
        if math.hypot(max(0, abs(x - cx) - (box.right - box.left) / 2), abs(y - cy)) > 16:
            near = min(max(x, box.left), box.right), min(max(y, box.bottom), box.top)
            plot.plot([x, near[0]], [y, near[1]], transform=None, color=RULE, lw=0.8, zorder=2)
        plot.text(
            cx, box.bottom + 3, words, transform=None, ha="center", size=SIZE, color=INK, zorder=4
        )
