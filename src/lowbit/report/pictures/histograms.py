"""The weights of one module before and after: a small picture for each quantized model.

Both are densities, so that bins of different widths compare. The float weights are a filled area,
the decoded ones an outline over it. Where zero is a level of every group its bin would flatten all
others: the axis ends at so many times the tallest float bin, and a line of text says how tall the
tallest bin is.
"""

import numpy as np
from matplotlib.ticker import MaxNLocator

from lowbit.evaluation.study import Histogram
from lowbit.report.pictures.canvas import (
    ACCENT,
    FAINT,
    FLOAT,
    QUANTIZED,
    RULE,
    WIDTH,
    Sheet,
    drawing,
    to_svg,
)
from lowbit.report.wording import number
from lowbit.visible import shortened

HEIGHT, TOP, BASE, SIDE = 172.0, 24.0, 136.0, 14.0
TALLEST = 2.2


@drawing
def histogram(name: str, module: str, model: str, before: Histogram, after: Histogram) -> str:
    """The picture of `module` in `model`; both histograms hold weights."""
    made = Sheet(WIDTH, HEIGHT)
    edge = before.edge
    (old, old_bins), (new, new_bins) = _density(before), _density(after)
    tallest = float(old.max())
    across = (WIDTH - 2 * SIDE) / (2 * edge)
    up = (BASE - TOP) / (TALLEST * tallest)
    for density, bins, is_float in ((old, old_bins, True), (new, new_bins, False)):
        points = _outline(np.minimum(density, TALLEST * tallest), np.clip(bins, -edge, edge))
        points = [SIDE + edge * across, BASE] + points * [across, -up]
        if is_float:
            made.area(points, facecolor=FLOAT)
        else:
            made.line(points[:, 0], points[:, 1], color=QUANTIZED, lw=1.2)
    made.line([SIDE, WIDTH - SIDE], [BASE, BASE], color=RULE, lw=1)
    for tick in MaxNLocator(4).tick_values(-edge, edge):
        x = SIDE + (tick + edge) * across
        if SIDE - 1 <= x <= WIDTH - SIDE + 1:
            made.line([x, x], [BASE, BASE + 4], color=RULE, lw=1)
            made.text(x, BASE + 16, number(tick, 3), ha="center", size=10, color=FAINT)
    made.text(WIDTH / 2, BASE + 32, "value of a weight", ha="center")
    made.text(0, 13, shortened(model, 34), weight="bold")
    if new.max() > TALLEST * tallest:
        words = f"tallest bin: {number(float(new.max()) / tallest, 2)}× float’s"
        made.text(WIDTH, 29, words, ha="right", color=ACCENT, size=10)
    if before.outside + after.outside:
        words = f"beyond ±{number(edge, 2)}: {before.outside:,} float, {after.outside:,} quantized"
        made.text(WIDTH, 13, words, ha="right", size=9, color=FAINT)
    description = (
        f"Float weights as a grey area, the weights of {model} as a blue outline;"
        f" {_levels(after)} of {len(after.counts)} bins hold quantized weights,"
        f" {_levels(before)} of {len(before.counts)} hold float ones."
    )
    return to_svg(made.figure, name, f"Weights of {module} in {model}", description)


def drawable(histogram: Histogram | None) -> bool:
    """Whether there is anything to draw: some weights, and an axis to put them on."""
    return (
        histogram is not None
        and bool(np.isfinite(histogram.edge))
        and histogram.edge > 0
        and len(histogram.counts) > 0
        and sum(histogram.counts) > 0
    )


def _outline(density: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """The corners of the bars, from the axis up, over all of them and down."""
    x, y = np.repeat(bins, 2), np.concatenate([[0.0], np.repeat(density, 2), [0.0]])
    return np.stack([x, y], axis=1)


def _density(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    counts = np.asarray(histogram.counts, dtype=float)
    bins = np.linspace(-histogram.edge, histogram.edge, len(counts) + 1)
    return counts / (counts.sum() + histogram.outside) / np.diff(bins), bins


def _levels(histogram: Histogram) -> int:
    return sum(count > 0 for count in histogram.counts)
